// Run an agent of the OpenAI Agents SDK with its own tool.
//
// npm install @openai/agents zod; node examples/openai_agents.ts "How is the weather in Oslo?"   (Node 22.18 or newer)
import { Agent, OpenAIResponsesModel, run, setTracingDisabled, tool } from '@openai/agents'
import OpenAI from 'openai'
import { z } from 'zod'

const url = process.env.GATEWAY_URL ?? 'http://127.0.0.1:8000'
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: process.env.GATEWAY_API_KEY ?? 'none' })
setTracingDisabled(true) // else the SDK reports each run to OpenAI

const getWeather = tool({
  name: 'get_weather',
  description: 'Tell the weather of a city.',
  parameters: z.object({ city: z.string() }),
  execute: async ({ city }) => `It is sunny in ${city}.`,
})
const agent = new Agent({
  name: 'Weather',
  instructions: 'Use the tool.',
  model: new OpenAIResponsesModel(client, 'openai/gpt-oss-120b'),
  tools: [getWeather],
})
const result = await run(agent, process.argv[2] ?? 'How is the weather in Oslo?')
console.log(result.finalOutput)
