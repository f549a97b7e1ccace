// Get a chat completion with the official `groq-sdk`.
//
// npm install groq-sdk; node examples/groq_sdk.ts "What is 23*19?"   (Node 22.18 or newer)
import Groq from 'groq-sdk'

const baseURL = process.env.GATEWAY_URL ?? 'http://127.0.0.1:8000'
const client = new Groq({ baseURL, apiKey: process.env.GATEWAY_API_KEY ?? 'none' })

const [model] = (await client.models.list()).data
const completion = await client.chat.completions.create({
  model: model.id,
  messages: [{ role: 'user', content: process.argv[2] ?? 'What is 23*19?' }],
})
console.log(completion.choices[0].message.content)
