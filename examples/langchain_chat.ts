// Stream an answer with LangChain's `ChatOpenAI`.
//
// npm install @langchain/core @langchain/openai; node examples/langchain_chat.ts "What is 23*19?"   (Node 22.18 or newer)
import { ChatOpenAI } from '@langchain/openai'

const url = process.env.GATEWAY_URL ?? 'http://127.0.0.1:8000'
const model = new ChatOpenAI({
  model: 'openai/gpt-oss-120b',
  apiKey: process.env.GATEWAY_API_KEY ?? 'none',
  configuration: { baseURL: `${url}/v1` },
})
for await (const chunk of await model.stream(process.argv[2] ?? 'What is 23*19?')) process.stdout.write(chunk.text)
process.stdout.write('\n')
