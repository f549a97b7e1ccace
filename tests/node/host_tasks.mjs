// MCP's SDK for TypeScript, and the tasks package of the protocol, run `ask_agent` as a task.
import { Client as ModernClient, StreamableHTTPClientTransport as ModernTransport } from '@modelcontextprotocol/client'
import { createTaskSessionFromClient, resultFromTaskOutcome } from '@modelcontextprotocol/ext-tasks/client'
import { Client } from '@modelcontextprotocol/sdk/client/index.js'
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js'
import { CallToolResultSchema, ElicitRequestSchema } from '@modelcontextprotocol/sdk/types.js'

const asked = []
const client = new Client({ name: 'host', version: '1' }, { capabilities: { elicitation: { form: {} } } })
client.setRequestHandler(ElicitRequestSchema, ({ params }) => {
  asked.push([params.message, params._meta])
  return { action: 'accept', content: {} }
})
await client.connect(new StreamableHTTPClientTransport(new URL(`${process.argv[2]}/mcp`)))
await client.listTools()
const tasks = client.experimental.tasks

const ask = (prompt) => tasks.callToolStream({ name: 'ask_agent', arguments: { prompt } }, CallToolResultSchema, { task: { ttl: 600_000 } })
const messages = []
for await (const message of ask('Say hello.')) messages.push(message)
const taskId = messages[0].task.taskId
const polled = await tasks.getTask(taskId)
const fetched = await tasks.getTaskResult(taskId, CallToolResultSchema)
const approved = []
for await (const message of ask('Add a task to buy milk')) approved.push(message)
let cancelled
for await (const message of ask('Stall here')) {
  if (message.type === 'taskCreated') cancelled = await tasks.cancelTask(message.task.taskId)
  if (message.type === 'error' || message.type === 'result') break
}
const listed = (await tasks.listTasks()).tasks

await client.close()

// The tasks package of the protocol, in both eras.
const url = new URL(`${process.argv[2]}/mcp`)
const clientInfo = { name: 'host', version: '1' }
const clientCapabilities = { extensions: { 'io.modelcontextprotocol/tasks': {} } }
let calls = 0

async function rawDispatch(request) {
  const { method, params } = request
  const headers = {
    'Content-Type': 'application/json',
    Accept: 'application/json, text/event-stream',
    'MCP-Protocol-Version': '2026-07-28',
    'Mcp-Method': method,
    'Mcp-Name': params.taskId ?? params.name,
  }
  const body = JSON.stringify({ jsonrpc: '2.0', id: ++calls, method, params })
  const text = await (await fetch(url, { method: 'POST', headers, body })).text()
  const { result, error } = JSON.parse(text.startsWith('{') ? text : text.match(/^data: (\{.*)$/m)[1])
  return error ? { kind: 'error', error } : { kind: 'result', result }
}

async function settle(era, prompt) {
  const modern = era === 'modern'
  const negotiation = modern ? { versionNegotiation: { mode: 'auto' } } : {}
  const host = new ModernClient(clientInfo, { capabilities: modern ? clientCapabilities : {}, ...negotiation })
  await host.connect(new ModernTransport(url))
  const framing = { protocolVersion: '2026-07-28', clientInfo, clientCapabilities }
  const used = host.getProtocolEra()
  const session = createTaskSessionFromClient(host, {
    endpointId: era,
    ...(modern ? { rawDispatch, v2RequestFraming: framing } : {}),
  })
  const execution = await session.callTool('ask_agent', { prompt })
  const { outcome } = await execution.settle()
  const result = resultFromTaskOutcome(outcome)
  await session.close()
  await host.close()
  return [used, result.content[0].text]
}

const legacy = await settle('legacy', 'Say hello.')
const modern = await settle('modern', 'Say hello.')
console.log(
  JSON.stringify({
    types: messages.map((message) => message.type),
    text: messages.at(-1).result.content[0].text,
    polled: [polled.taskId === taskId, polled.status],
    fetched: fetched.content[0].text,
    related: fetched._meta['io.modelcontextprotocol/related-task'].taskId === taskId,
    approved: approved.at(-1).type,
    asked,
    cancelled: cancelled.status,
    listed: listed.map((task) => task.status),
    legacy,
    modern,
    rawCalls: calls,
  }),
)
