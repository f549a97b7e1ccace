// Use the Responses API with the official `openai` SDK: a stream, then a second turn.
//
// npm install openai; node examples/openai_responses.ts "My name is Zoe." "What is my name?"   (Node 22.18 or newer)
import OpenAI from 'openai'

const url = process.env.GATEWAY_URL ?? 'http://127.0.0.1:8000'
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: process.env.GATEWAY_API_KEY ?? 'none' })
const prompts = process.argv.length > 2 ? process.argv.slice(2) : ['My name is Zoe.', 'What is my name?']

const [model] = (await client.models.list()).data
let previous: string | undefined
for (const input of prompts) {
  const stream = client.responses.stream({ model: model.id, input, previous_response_id: previous })
  stream.on('response.output_text.delta', ({ delta }) => void process.stdout.write(delta))
  const response = await stream.finalResponse()
  previous = response.id
  console.log(`\n${response.status}`)
}
