// An MCP host over the official SDK that knows the gateway's address alone. It prints the address of each sign-in and
// listens for the browser. Arguments: address of /mcp, protocol era (legacy or auto), names of steps.
import { createServer } from 'node:http'
import { once } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import { Client, StreamableHTTPClientTransport, UnauthorizedError } from '@modelcontextprotocol/client'

const [address, era, ...steps] = process.argv.slice(2)
const listener = createServer((request, response) => {
  response.end('You may close this page.')
  listener.emit('callback', new URL(request.url, redirectUrl).searchParams)
}).listen(0, '127.0.0.1')
await once(listener, 'listening')
const redirectUrl = `http://127.0.0.1:${listener.address().port}/callback`
const stored = {}
const result = { signIns: 0, refreshes: 0, texts: [] }

const provider = {
  redirectUrl,
  clientMetadata: {
    client_name: 'host of the tests',
    redirect_uris: [redirectUrl],
    grant_types: ['authorization_code', 'refresh_token'],
    response_types: ['code'],
    token_endpoint_auth_method: 'none',
    application_type: 'native',
  },
  clientInformation: () => stored.client,
  saveClientInformation: (client) => (stored.client = client),
  tokens: () => stored.tokens,
  saveTokens: (tokens) => {
    result.refreshes += stored.tokens === undefined || stored.visited ? 0 : 1
    stored.visited = false
    stored.tokens = tokens
  },
  redirectToAuthorization: (url) => {
    stored.visited = true
    result.signIns += 1
    stored.callback = once(listener, 'callback')
    console.log(String(url))
  },
  saveCodeVerifier: (verifier) => (stored.verifier = verifier),
  codeVerifier: () => stored.verifier,
}

let transport
let client
async function connect() {
  const options = era === 'legacy' ? {} : { versionNegotiation: { mode: era } }
  client = new Client({ name: 'host of the tests', version: '1.0.0' }, options)
  transport = new StreamableHTTPClientTransport(new URL(address), { authProvider: provider })
  await client.connect(transport)
}

async function signInIfAsked(act) {
  for (;;) {
    try {
      return await act()
    } catch (error) {
      if (!(error instanceof UnauthorizedError) || result.signIns > 3) throw error
      const [parameters] = await stored.callback
      await transport.finishAuth(parameters)
    }
  }
}

async function callTool(name, args) {
  const answer = await signInIfAsked(() => client.callTool({ name, arguments: args }))
  result.texts.push(answer.content.map((block) => block.text).join(''))
}

const STEPS = {
  list: async () => (result.tools = (await client.listTools()).tools.map((tool) => tool.name)),
  calculate: () => callTool('calculator', { expression: '5*9' }),
  add: () => callTool('add_task', { title: 'Buy milk' }),
  tasks: () => callTool('list_tasks', {}),
  expire: async () => {
    if (result.refreshes) return // on a slow machine it has expired before
    const { exp } = JSON.parse(Buffer.from(stored.tokens.access_token.split('.')[1], 'base64url'))
    await sleep(Math.max(0, exp * 1000 + 100 - Date.now()))
  },
  end: async () => {
    const session = transport.sessionId
    await transport.terminateSession()
    const headers = { Authorization: `Bearer ${stored.tokens.access_token}`, 'Mcp-Session-Id': session, Accept: '*/*' }
    const body = JSON.stringify({ jsonrpc: '2.0', id: 1, method: 'tools/list' })
    const answer = await fetch(address, { method: 'POST', headers: { ...headers, 'Content-Type': 'application/json' }, body })
    result.ended = answer.status
  },
}

await signInIfAsked(connect)
result.protocol = client.getNegotiatedProtocolVersion?.() ?? null
for (const step of steps) await STEPS[step]()
await client.close()
console.log(JSON.stringify(result))
process.exit(0)
