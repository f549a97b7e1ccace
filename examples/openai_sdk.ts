// Stream a chat completion with the official `openai` SDK. The gateway runs its own tools.
//
// npm install openai; node examples/openai_sdk.ts "What is 23*19?"   (Node 22.18 or newer)
import OpenAI from 'openai'

const url = process.env.GATEWAY_URL ?? 'http://127.0.0.1:8000'
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: process.env.GATEWAY_API_KEY ?? 'none' })

const [model] = (await client.models.list()).data
const stream = await client.chat.completions.create({
  model: model.id,
  messages: [{ role: 'user', content: process.argv[2] ?? 'What is 23*19?' }],
  stream: true,
})
for await (const chunk of stream) process.stdout.write(chunk.choices[0]?.delta.content ?? '')
process.stdout.write('\n')
