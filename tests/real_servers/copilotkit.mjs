// CopilotKit's runtime with the gateway as its agent: a run, a front end's tool and an interrupt.
import { HttpAgent } from '@ag-ui/client'
import { CopilotRuntime, createCopilotRuntimeHandler } from '@copilotkit/runtime/v2'

const runtime = new CopilotRuntime({ agents: { default: new HttpAgent({ url: `${process.argv[2]}/api/v1/ag-ui` }) } })
const handler = createCopilotRuntimeHandler({ runtime, basePath: '/api/copilotkit' })
const headers = { 'content-type': 'application/json', accept: 'text/event-stream' }

async function run(threadId, messages, fields = {}) {
  const input = { threadId, runId: crypto.randomUUID(), state: {}, messages, tools: [], context: [], forwardedProps: {} }
  const body = JSON.stringify({ ...input, ...fields })
  const url = 'http://localhost/api/copilotkit/agent/default/run'
  const response = await handler(new Request(url, { method: 'POST', headers, body }))
  const lines = (await response.text()).split('\n').filter((line) => line.startsWith('data: '))
  return lines.map((line) => JSON.parse(line.slice(6)))
}
const ask = (content) => [{ id: crypto.randomUUID(), role: 'user', content }]
const text = (events) => events.filter((e) => e.type === 'TEXT_MESSAGE_CONTENT').map((e) => e.delta).join('')

const plain = await run('plain', ask('What is 23*19?'))

const question = ask('call get_weather with {"city": "Oslo"}')
const tools = [{ name: 'get_weather', description: 'The weather of a city.', parameters: { type: 'object', properties: {} } }]
const called = await run('tools', question, { tools })
const start = called.find((event) => event.type === 'TOOL_CALL_START')
const call = { id: start.toolCallId, type: 'function', function: { name: start.toolCallName, arguments: '{"city": "Oslo"}' } }
const answer = { id: start.parentMessageId, role: 'assistant', toolCalls: [call] }
const result = { id: 'result', role: 'tool', toolCallId: call.id, content: 'It snows in Oslo.' }
const told = await run('tools', [...question, answer, result], { tools })

const asked = await run('asked', ask('Add a task to buy milk'), { forwardedProps: { x_gateway: { approval: 'always' } } })

console.log(
  JSON.stringify({
    plain: { text: text(plain), last: plain.at(-1).type },
    told: text(told),
    interrupts: asked.at(-1).outcome.interrupts,
  }),
)
process.exit(0)
