// Chats of the AI SDK without a page: of version 7 with its Chat class, of version 6 with its transport alone.
import { Chat } from '@ai-sdk/react'
import * as six from 'ai'
import {
  DefaultChatTransport,
  lastAssistantMessageIsCompleteWithApprovalResponses,
  lastAssistantMessageIsCompleteWithToolCalls,
} from 'ai7'

const api = `${process.argv[2]}/api/v1/ui-messages`
const createChat = (options = {}, body = undefined) =>
  new Chat({ transport: new DefaultChatTransport({ api, body }), onError: () => {}, ...options })
const types = (message) => message.parts.map((part) => part.type)
const text = (message) => message.parts.filter((part) => part.type === 'text').map((part) => part.text).join('')
const until = async (check) => {
  while (!check()) await new Promise((resolve) => setTimeout(resolve, 10))
}

const plain = createChat()
await plain.sendMessage({ text: 'What is 23*19?' })
const first = plain.lastMessage
await plain.sendMessage({ text: 'Say two.' })
await plain.regenerate()

const approving = createChat(
  { sendAutomaticallyWhen: lastAssistantMessageIsCompleteWithApprovalResponses },
  { x_gateway: { approval: 'always' } },
)
await approving.sendMessage({ text: 'Add a task to buy milk' })
const asked = approving.lastMessage.parts.find((part) => part.type === 'dynamic-tool')
const askedState = asked.state
await approving.addToolApprovalResponse({ id: asked.approval.id, approved: true })
await until(() => approving.status === 'ready' && approving.lastMessage.metadata.finish_reason === 'stop')

const cities = []
const own = createChat(
  {
    sendAutomaticallyWhen: lastAssistantMessageIsCompleteWithToolCalls,
    onToolCall: async ({ toolCall }) => {
      if (toolCall.dynamic) return
      cities.push(toolCall.input.city)
      own.addToolOutput({ tool: 'get_weather', toolCallId: toolCall.toolCallId, output: `It snows in ${toolCall.input.city}.` })
    },
  },
  { tools: { get_weather: { description: 'The weather of a city.', parameters: { type: 'object', properties: { city: { type: 'string' } } } } } },
)
await own.sendMessage({ text: 'call get_weather with {"city": "Oslo"}' })
await until(() => own.status === 'ready' && text(own.lastMessage).includes('snows'))

const stopping = createChat()
const sent = stopping.sendMessage({ text: 'Go on.' })
await until(() => stopping.lastMessage?.role === 'assistant' && text(stopping.lastMessage))
const reloaded = createChat({ id: stopping.id })
const resumed = reloaded.resumeStream()
await until(() => reloaded.lastMessage && text(reloaded.lastMessage))
const sameId = reloaded.lastMessage.id === stopping.lastMessage.id
await reloaded.stop()
await stopping.stop()
await Promise.all([sent, resumed])
const stopped = stopping.status

const idle = createChat()
await idle.resumeStream()

const refused = createChat({}, { model: 'no-such-model' })
await refused.sendMessage({ text: 'Hello' })

const transport = new six.DefaultChatTransport({ api })
const user = { id: 'u1', role: 'user', parts: [{ type: 'text', text: 'What is 23*19?' }] }
let answer
const stream = await transport.sendMessages({ chatId: crypto.randomUUID(), messages: [user], trigger: 'submit-message' })
for await (const message of six.readUIMessageStream({ stream })) answer = message

console.log(
  JSON.stringify({
    plain: {
      types: types(first),
      text: text(first),
      metadata: first.metadata,
      roles: plain.messages.map((message) => message.role),
      status: plain.status,
    },
    approval: {
      asked: askedState,
      states: approving.lastMessage.parts.filter((part) => part.type === 'dynamic-tool').map((part) => part.state),
      messages: approving.messages.length,
      text: text(approving.lastMessage),
    },
    own: { cities, messages: own.messages.length, types: types(own.lastMessage), text: text(own.lastMessage) },
    stopped: { status: stopped, sameId, turn: stopping.lastMessage.metadata.turn_id },
    idle: idle.status,
    refused: { status: refused.status, message: refused.error.message },
    six: { types: types(answer), text: text(answer) },
  }),
)
process.exit(0)
