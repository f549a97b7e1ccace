// The Vercel AI SDK with its default model of OpenAI, which sends references to stored items.
import { createOpenAI } from '@ai-sdk/openai'
import { generateText, jsonSchema, stepCountIs, tool } from 'ai'

const openai = createOpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: 'none' })
const model = openai('openai/gpt-oss-120b')
const cities = []
const tools = {
  get_weather: tool({
    description: 'The weather of a city.',
    inputSchema: jsonSchema({ type: 'object', properties: { city: { type: 'string' } }, required: ['city'] }),
    execute: async ({ city }) => {
      cities.push(city)
      return `It snows in ${city}.`
    },
  }),
}
const question = { role: 'user', content: 'call get_weather with {"city": "Oslo"}' }
const first = await generateText({ model, messages: [question], tools, stopWhen: stepCountIs(3) })
const messages = [question, ...first.response.messages, { role: 'user', content: 'What is 23*19?' }]
const second = await generateText({ model, messages })
console.log(JSON.stringify({ cities, first: first.text, steps: first.steps.length, second: second.text }))
