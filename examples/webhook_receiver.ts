// Receive the gateway's webhooks, and verify their signatures with the library of Standard Webhooks.
//
// The gateway needs WEBHOOK_HOSTS=127.0.0.1, WEBHOOK_PRIVATE_TARGETS=127.0.0.1:8099 and a WEBHOOK_SECRETS; this program
// needs the same secret. Then a request with "webhook_url": "http://127.0.0.1:8099/" is told of here.
//
// npm install standardwebhooks; WEBHOOK_SECRET=whsec_... node examples/webhook_receiver.ts   (Node 22.18 or newer)
import { createServer } from 'node:http'
import { type AddressInfo } from 'node:net'
import { Webhook } from 'standardwebhooks'

const webhook = new Webhook(process.env.WEBHOOK_SECRET ?? '')
const maxBytes = 1_000_000

const server = createServer(async (request, response) => {
  const parts: Buffer[] = []
  let size = 0
  for await (const part of request) if ((size += part.length) <= maxBytes) parts.push(part)
  try {
    const headers = request.headers as Record<string, string>
    const message = webhook.verify(Buffer.concat(parts).toString(), headers) as { type: string; data: { turn_id: string } }
    console.log(`${message.type} ${message.data.turn_id}`) // the same message may come twice: `webhook-id` tells
    response.writeHead(204).end()
  } catch {
    console.log('refused')
    response.writeHead(401).end()
  }
})
server.listen(Number(process.env.PORT ?? 8099), '127.0.0.1', () => {
  console.log(`listening on http://127.0.0.1:${(server.address() as AddressInfo).port}/`)
})
