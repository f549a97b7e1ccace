// An AG-UI client: it streams runs of one thread, and asks before a tool changes something.
import { HttpAgent, type AgentSubscriber } from '@ag-ui/client'

const gateway = process.env.GATEWAY_URL ?? 'http://127.0.0.1:8000'
const agent = new HttpAgent({ url: `${gateway}/api/v1/ag-ui` })
const forwardedProps = { x_gateway: { approval: 'destructive' } } // optional, as are `tools` and `context`

type Interrupt = { id: string; message?: string }
let interrupts: Interrupt[] = []
const printer: AgentSubscriber = {
  onTextMessageContentEvent: ({ event }) => void process.stdout.write(event.delta),
  onTextMessageEndEvent: () => void process.stdout.write('\n'),
  onToolCallEndEvent: ({ toolCallName, toolCallArgs }) => console.log(`-> ${toolCallName} ${JSON.stringify(toolCallArgs)}`),
  onToolCallResultEvent: ({ event }) => console.log(`<- ${event.content}`),
  onRunErrorEvent: ({ event }) => console.error(`error: ${event.message}`),
  onRunFinishedEvent: ({ event }) => {
    interrupts = event.outcome?.type === 'interrupt' ? event.outcome.interrupts : []
  },
}

for (const content of process.argv.slice(2)) {
  agent.addMessage({ id: crypto.randomUUID(), role: 'user', content })
  await agent.runAgent({ forwardedProps }, printer)
  while (interrupts.length > 0) {
    for (const interrupt of interrupts) console.log(`allowed: ${interrupt.message}`) // ask a person here
    const resume = interrupts.map(({ id }) => ({ interruptId: id, status: 'resolved' as const, payload: { approved: true } }))
    await agent.runAgent({ forwardedProps, resume }, printer)
  }
}
