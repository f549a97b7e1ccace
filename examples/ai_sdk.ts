// Stream an answer with the AI SDK by each of its providers: OpenAI's Responses, chat completions, and Anthropic's messages.
//
// npm install ai @ai-sdk/openai @ai-sdk/openai-compatible @ai-sdk/anthropic; node examples/ai_sdk.ts "What is 23*19?"
import { createAnthropic } from '@ai-sdk/anthropic'
import { createOpenAI } from '@ai-sdk/openai'
import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { streamText } from 'ai'

const url = process.env.GATEWAY_URL ?? 'http://127.0.0.1:8000'
const settings = { baseURL: `${url}/v1`, apiKey: process.env.GATEWAY_API_KEY ?? 'none' }
const model = 'openai/gpt-oss-120b'
const prompt = process.argv[2] ?? 'What is 23*19?'

const models = {
  openai: createOpenAI(settings)(model),
  'openai-compatible': createOpenAICompatible({ name: 'gateway', includeUsage: true, ...settings })(model),
  anthropic: createAnthropic(settings)(model),
}
for (const [name, languageModel] of Object.entries(models)) {
  process.stdout.write(`${name}: `)
  const result = streamText({ model: languageModel, prompt })
  for await (const text of result.textStream) process.stdout.write(text)
  console.log(` (${await result.finishReason}, ${(await result.usage).totalTokens} tokens)`)
}
