// Stream a message with the official `@anthropic-ai/sdk`.
//
// npm install @anthropic-ai/sdk; node examples/anthropic_sdk.ts "What is 23*19?"   (Node 22.18 or newer)
import Anthropic from '@anthropic-ai/sdk'

const baseURL = process.env.GATEWAY_URL ?? 'http://127.0.0.1:8000'
const client = new Anthropic({ baseURL, apiKey: process.env.GATEWAY_API_KEY ?? 'none' })

const [model] = (await client.models.list()).data
const stream = client.messages.stream({
  model: model.id,
  max_tokens: 1_000,
  messages: [{ role: 'user', content: process.argv[2] ?? 'What is 23*19?' }],
})
stream.on('text', (text) => void process.stdout.write(text))
console.log(`\n${(await stream.finalMessage()).stop_reason}`)
