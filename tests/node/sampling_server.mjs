// An MCP server of the official SDKs whose tool lets the model of its caller call a tool of its own.
// Arguments: port, era (legacy: SDK 1.x with sessions; modern: SDK 2.x).
import { createServer } from 'node:http'
import { randomUUID } from 'node:crypto'
import { Readable } from 'node:stream'
import { z } from 'zod'

const [port, era] = process.argv.slice(2)
const description = { description: 'Let the model look a word up.', inputSchema: z.object({ prompt: z.string() }) }
const lookup = { name: 'lookup', description: 'Looks up.', inputSchema: { type: 'object' } }
const ask = (prompt) => ({
  messages: [{ role: 'user', content: { type: 'text', text: prompt } }],
  tools: [lookup],
  maxTokens: 50,
})
const report = ({ stopReason, content }) => {
  const use = [content].flat().find(({ type }) => type === 'tool_use')
  return { content: [{ type: 'text', text: `${stopReason} ${use?.name} ${JSON.stringify(use?.input)}` }] }
}

let handle
if (era === 'modern') {
  const { McpServer, createMcpHandler, inputRequired } = await import('@modelcontextprotocol/server')
  const handler = createMcpHandler(() => {
    const server = new McpServer({ name: 'sampling', version: '1.0.0' })
    server.registerTool('look_up', description, async ({ prompt }, ctx) => {
      const answer = ctx.mcpReq.inputResponses?.answer
      if (answer === undefined) {
        return inputRequired({ inputRequests: { answer: inputRequired.createMessage(ask(prompt)) } })
      }
      return report(answer)
    })
    return server
  })
  handle = async (request, response) => {
    const body = ['GET', 'HEAD'].includes(request.method) ? undefined : Readable.toWeb(request)
    const answer = await handler.fetch(
      new Request(`http://127.0.0.1:${port}${request.url}`, {
        method: request.method,
        headers: request.headers,
        body,
        duplex: 'half',
      }),
    )
    response.writeHead(answer.status, Object.fromEntries(answer.headers))
    if (answer.body === null) return response.end()
    Readable.fromWeb(answer.body).pipe(response)
  }
} else {
  const { McpServer } = await import('@modelcontextprotocol/sdk/server/mcp.js')
  const { StreamableHTTPServerTransport } = await import('@modelcontextprotocol/sdk/server/streamableHttp.js')
  const { CreateMessageResultWithToolsSchema } = await import('@modelcontextprotocol/sdk/types.js')
  const sessions = new Map()
  handle = async (request, response) => {
    let transport = sessions.get(request.headers['mcp-session-id'])
    if (transport === undefined) {
      const server = new McpServer({ name: 'sampling', version: '1.0.0' })
      server.registerTool('look_up', { ...description, inputSchema: { prompt: z.string() } }, async ({ prompt }, extra) =>
        report(
          await extra.sendRequest(
            { method: 'sampling/createMessage', params: ask(prompt) },
            CreateMessageResultWithToolsSchema,
          ),
        ),
      )
      transport = new StreamableHTTPServerTransport({
        sessionIdGenerator: randomUUID,
        onsessioninitialized: (id) => sessions.set(id, transport),
      })
      await server.connect(transport)
    }
    await transport.handleRequest(request, response)
  }
}
createServer((request, response) => handle(request, response)).listen(Number(port), '127.0.0.1')
