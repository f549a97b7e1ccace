// Attach an MCP client to the gateway: one endpoint for the tools of every connected MCP server.
//
// npm install @modelcontextprotocol/client; node examples/mcp_client.ts   (Node 22.18 or newer)
import { Client, StreamableHTTPClientTransport } from '@modelcontextprotocol/client'

const url = process.env.GATEWAY_URL ?? 'http://127.0.0.1:8000'
const key = process.env.GATEWAY_API_KEY
const requestInit = key ? { headers: { Authorization: `Bearer ${key}` } } : {}

const client = new Client({ name: 'example', version: '1.0.0' })
await client.connect(new StreamableHTTPClientTransport(new URL(`${url}/mcp`), { requestInit }))
const { tools } = await client.listTools()
console.log(`tools: ${tools.map(({ name }) => name).sort().join(', ')}`)

const result = await client.callTool({ name: 'calculator', arguments: { expression: '23*19' } })
console.log(`calculator: ${JSON.stringify(result.structuredContent)}`)

// The gateway's own agent: a model that works with all of these tools.
const answer = await client.callTool({ name: 'ask_agent', arguments: { prompt: 'What is 6*7?' } })
for (const block of answer.content) if (block.type === 'text') console.log(`ask_agent: ${block.text}`)
await client.close()
