// Anthropic's SDK against the gateway: a whole message, a stream, a client's tool and an error.
import Anthropic from '@anthropic-ai/sdk'

const client = new Anthropic({ baseURL: process.argv[2], apiKey: 'none', maxRetries: 0 })
const model = 'claude-sonnet-5'
const question = [{ role: 'user', content: 'What is 23*19?' }]
const types = (message) => message.content.map((block) => block.type)

const whole = await client.messages.create({ model, max_tokens: 1000, messages: question })
let shown = ''
const stream = client.messages.stream({ model, max_tokens: 1000, messages: question })
stream.on('text', (text) => { shown += text })
const streamed = await stream.finalMessage()

const city = { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] }
const tools = [{ name: 'get_weather', description: 'The weather of a city.', input_schema: city }]
const asked = [{ role: 'user', content: 'What is the weather in Oslo?' }]
const call = await client.messages.create({ model, max_tokens: 1000, messages: asked, tools, tool_choice: { type: 'any' } })
const use = call.content.find((block) => block.type === 'tool_use')
const result = { type: 'tool_result', tool_use_id: use.id, content: 'It snows in Oslo.' }
const answer = await client.messages.create({
  model,
  max_tokens: 1000,
  tools,
  messages: [...asked, { role: 'assistant', content: call.content }, { role: 'user', content: [result] }]
})
let error
try {
  await client.messages.create({ model: 'no-such-model', max_tokens: 10, messages: question })
} catch (failure) {
  error = { name: failure.constructor.name, status: failure.status, id: failure.requestID }
}
console.log(JSON.stringify({
  whole: { types: types(whole), stop: whole.stop_reason, text: whole.content.at(-1).text },
  streamed: { types: types(streamed), stop: streamed.stop_reason, text: shown },
  tool: { name: use.name, stop: call.stop_reason, text: answer.content.at(-1).text },
  error
}))
