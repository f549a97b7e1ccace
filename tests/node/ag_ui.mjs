// Runs of AG-UI's client: text, tools of the gateway and of the front end, interrupts, abort and errors.
import { HttpAgent } from '@ag-ui/client'

const url = `${process.argv[2]}/api/v1/ag-ui`
const createAgent = () => new HttpAgent({ url })
const record = () => {
  const events = []
  return { events, subscriber: { onEvent: ({ event }) => void events.push(event) } }
}
const ask = async (agent, content, parameters = {}) => {
  if (content) agent.addMessage({ id: crypto.randomUUID(), role: 'user', content })
  const { events, subscriber } = record()
  await agent.runAgent(parameters, subscriber)
  return events
}
const text = (agent) => agent.messages.filter((m) => m.role === 'assistant').map((m) => m.content ?? '').join('')
const roles = (agent) => agent.messages.map((m) => m.role)

const plain = createAgent()
const first = await ask(plain, 'What is 23*19?')
const firstRoles = roles(plain)
await ask(plain, 'Say two.')

const approving = createAgent()
const forwardedProps = { x_gateway: { approval: 'always' } }
const asked = await ask(approving, 'Add a task to buy milk', { forwardedProps })
const outcome = asked.at(-1).outcome
const resume = (status, payload) => [{ interruptId: outcome.interrupts[0].id, status, payload }]
const resumed = await ask(approving, undefined, { forwardedProps, resume: resume('resolved', { approved: true }) })

const declining = createAgent()
const declined = await ask(declining, 'Add a task to buy bread', { forwardedProps })
const { id } = declined.at(-1).outcome.interrupts[0]
await ask(declining, undefined, { forwardedProps, resume: [{ interruptId: id, status: 'cancelled' }] })

const own = createAgent()
const parameters = { type: 'object', properties: { city: { type: 'string' } } }
const tools = [{ name: 'get_weather', description: 'The weather of a city.', parameters }]
const called = await ask(own, 'call get_weather with {"city": "Oslo"}', { tools })
const call = own.messages.at(-1).toolCalls[0]
own.addMessage({ id: crypto.randomUUID(), role: 'tool', toolCallId: call.id, content: 'It snows in Oslo.' })
await ask(own, undefined, { tools })

const aborting = createAgent()
let turn
aborting.addMessage({ id: '1', role: 'user', content: 'Go on.' })
await aborting
  .runAgent({}, {
    onRunStartedEvent: ({ event }) => void (turn = event.metadata.gateway.turn_id),
    onTextMessageContentEvent: () => void aborting.abortRun(),
  })
  .catch(() => {})

let refused
try {
  await ask(createAgent(), 'Hello', { forwardedProps: { model: 'no-such-model' } })
} catch (error) {
  refused = String(error.message)
}

console.log(
  JSON.stringify({
    plain: { types: first.map((event) => event.type), roles: firstRoles, text: text(plain), end: first.at(-1) },
    approval: { outcome, types: resumed.map((event) => event.type), text: text(approving), roles: roles(approving) },
    declined: { last: declining.messages.find((m) => m.role === 'tool').content, text: text(declining) },
    own: { call: call.function, end: called.at(-1).outcome, text: text(own), roles: roles(own) },
    aborted: turn,
    refused,
  }),
)
process.exit(0)
