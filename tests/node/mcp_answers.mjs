// An MCP host over an official SDK that answers requests for sampling (with a tool) and roots.
// Arguments: SDK (client: 2.x, sdk: 1.x), address of /mcp, protocol era (legacy or auto), prefix of the tools' names.
const [sdk, address, era, prefix, root] = process.argv.slice(2)
const capabilities = { sampling: { tools: {} }, roots: { listChanged: true } }
const host = { name: 'host of the tests', version: '1.0.0' }
const roots = { roots: [{ uri: root, name: 'work' }] }
const seen = []

function answer({ params }) {
  seen.push({ tools: (params.tools ?? []).map(({ name }) => name), maxTokens: params.maxTokens })
  if (params.tools?.length) {
    const content = [{ type: 'tool_use', id: 'call_1', name: params.tools[0].name, input: { word: 'whale' } }]
    return { role: 'assistant', model: 'host-model', content, stopReason: 'toolUse' }
  }
  return { role: 'assistant', model: 'host-model', content: { type: 'text', text: 'from the host' }, stopReason: 'endTurn' }
}

let client, transport
if (sdk === 'client') {
  const { Client, StreamableHTTPClientTransport } = await import('@modelcontextprotocol/client')
  const options = era === 'legacy' ? {} : { versionNegotiation: { mode: era } }
  client = new Client(host, { capabilities, ...options })
  client.setRequestHandler('sampling/createMessage', answer)
  client.setRequestHandler('roots/list', () => roots)
  transport = new StreamableHTTPClientTransport(new URL(address))
} else {
  const { Client } = await import('@modelcontextprotocol/sdk/client/index.js')
  const { StreamableHTTPClientTransport } = await import('@modelcontextprotocol/sdk/client/streamableHttp.js')
  const { CreateMessageRequestSchema, ListRootsRequestSchema } = await import('@modelcontextprotocol/sdk/types.js')
  client = new Client(host, { capabilities })
  client.setRequestHandler(CreateMessageRequestSchema, answer)
  client.setRequestHandler(ListRootsRequestSchema, () => roots)
  transport = new StreamableHTTPClientTransport(new URL(address))
}
await client.connect(transport)
const texts = {}
for (const [tool, input] of Object.entries({ summarize: { prompt: 'x' }, look_up: { prompt: 'x' }, show_roots: {} })) {
  const { content } = await client.callTool({ name: `${prefix}${tool}`, arguments: input })
  texts[tool] = content[0].text
}
await client.close()
console.log(JSON.stringify({ texts, seen }))
