// Uses the Vercel AI SDK as a Node back end does, and prints the results as JSON.
import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { generateObject, generateText, jsonSchema, stepCountIs, streamText, tool } from 'ai'
import { z } from 'zod'

const gateway = createOpenAICompatible({
  name: 'gateway',
  baseURL: `${process.argv[2]}/v1`,
  apiKey: 'none',
  includeUsage: true,
  supportsStructuredOutputs: true,
})
const model = gateway('openai/gpt-oss-120b')

const plain = await generateText({ model, prompt: 'What is 23*19?' })

const streamed = streamText({ model, prompt: 'What is 23*19?' })
let text = ''
for await (const piece of streamed.textStream) text += piece

const cities = []
const withTool = streamText({
  model,
  prompt: 'call get_weather with {"city": "Oslo"}',
  stopWhen: stepCountIs(3),
  tools: {
    get_weather: tool({
      description: 'The weather of a city.',
      inputSchema: jsonSchema({ type: 'object', properties: { city: { type: 'string' } }, required: ['city'] }),
      execute: async ({ city }) => {
        cities.push(city)
        return `It snows in ${city}.`
      },
    }),
  },
})
const toolText = await withTool.text

const { object } = await generateObject({
  model,
  schema: z.object({ expression: z.string(), value: z.number() }),
  prompt: 'What is 23*19?',
})

let error = null
try {
  await generateText({ model: gateway('no-such-model'), prompt: 'Hello', maxRetries: 0 })
} catch (caught) {
  error = { status: caught.statusCode, message: caught.message }
}

console.log(
  JSON.stringify({
    plain: { text: plain.text, finish: plain.finishReason, tokens: plain.usage.totalTokens, calls: plain.toolCalls.length },
    streamed: { text, finish: await streamed.finishReason, tokens: (await streamed.usage).totalTokens },
    tool: { text: toolText, cities, steps: (await withTool.steps).length },
    object,
    error,
  }),
)
