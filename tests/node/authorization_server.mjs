// A real authorization server: oidc-provider, with its own forms to sign in and to consent.
// Argument: port. Prints its issuer when it serves. Each line on stdin is a JSON command, answered by a line.
import { generateKeyPairSync } from 'node:crypto'
import { createServer } from 'node:http'
import { createInterface } from 'node:readline'
import Provider from 'oidc-provider'

const port = process.argv[2]
const issuer = `http://127.0.0.1:${port}`
const scopes = ['tools', 'history', 'chat']
const log = []
const LONG_SECONDS = 300
let tokenSeconds = LONG_SECONDS // of the next token
let granted = scopes // of the next token
let number = 0
console.info = console.error // notices of oidc-provider; the standard output has the answers

function createKey() {
  const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 })
  return { ...privateKey.export({ format: 'jwk' }), alg: 'RS256', use: 'sig', kid: `key-${++number}` }
}

function createProvider(keys) {
  const provider = new Provider(issuer, {
    jwks: { keys },
    cookies: { keys: ['the tests alone have this one'] },
    scopes: ['openid', 'offline_access', ...scopes],
    pkce: { required: () => true },
    clientBasedCORS: () => true,
    issueRefreshToken: async (_context, client) => client.grantTypeAllowed('refresh_token'),
    rotateRefreshToken: true,
    features: {
      registration: { enabled: true },
      revocation: { enabled: true },
      resourceIndicators: {
        enabled: true,
        defaultResource: () => undefined,
        useGrantedResource: () => true,
        getResourceServerInfo: (_context, indicator) => ({
          scope: granted.join(' '),
          audience: indicator, // any address is a resource here, as at a server that many share
          accessTokenFormat: 'jwt',
          accessTokenTTL: tokenSeconds,
          jwt: { sign: { alg: 'RS256' } },
        }),
      },
    },
  })
  provider.on('server_error', (_context, error) => log.push({ error: String(error.stack) }))
  provider.on('authorization.error', (_context, error) => log.push({ error: error.error_description ?? error.message }))
  provider.on('grant.error', (_context, error) => log.push({ error: error.error_description ?? error.message }))
  provider.on('registration_create.error', (_c, error) => log.push({ error: error.error_description ?? error.message }))
  provider.on('registration_create.success', (_context, client) => log.push({ registered: client.metadata() }))
  provider.on('access_token.issued', () => {
    granted = scopes
    tokenSeconds = LONG_SECONDS
  })
  provider.on('access_token.issued', (token) => log.push({ issued: token.scope ?? '', audience: token.aud, user: token.accountId }))
  provider.on('grant.success', (context) => log.push({ grant: context.oidc.params.grant_type, resource: context.oidc.params.resource }))
  return provider.callback()
}

let keys = [createKey()]
let handle = createProvider(keys)

const commands = {
  log: () => log,
  // New tokens are signed by a new key; the old one is published no more.
  rotate: () => {
    keys = [createKey()]
    handle = createProvider(keys)
    return keys.map((key) => key.kid)
  },
  grant: (...names) => (granted = names),
  lifetime: (seconds) => (tokenSeconds = seconds),
}

createServer((request, response) => handle(request, response)).listen(Number(port), '127.0.0.1', () => console.log(issuer))
for await (const line of createInterface({ input: process.stdin })) {
  const [name, ...values] = JSON.parse(line)
  console.log(JSON.stringify(await commands[name](...values)))
}
process.exit(0)
