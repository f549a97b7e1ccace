// The JavaScript SDK of A2A 0.3 against the gateway: card, stream, question and errors.
import { ClientFactory } from 'a2a-0.3/client'

const [url] = process.argv.slice(2)
const client = await new ClientFactory().createFromUrl(url)
const request = (text, fields = {}) => ({
  message: { kind: 'message', role: 'user', messageId: crypto.randomUUID(), parts: [{ kind: 'text', text }], ...fields },
})

const kinds = []
let streamed = ''
let id
for await (const event of client.sendMessageStream(request('What is 23*19?'))) {
  kinds.push(event.kind)
  if (event.kind === 'task') id = event.id
  if (event.kind === 'artifact-update') streamed += event.artifact.parts.map((part) => part.text).join('')
}
const got = await client.getTask({ id })
const asked = await client.sendMessage(request('Add a task to rest', { metadata: { approval: 'always' } }))
const answered = await client.sendMessage(request('yes', { taskId: asked.id, contextId: asked.contextId }))
const errors = []
for (const attempt of [() => client.cancelTask({ id: answered.id }), () => client.getTask({ id: crypto.randomUUID() })]) {
  await attempt().catch((error) => errors.push(error.constructor.name))
}
console.log(JSON.stringify({
  kinds,
  streamed,
  got: got.status.state,
  asked: asked.status.state,
  answered: [answered.status.state, answered.id === asked.id],
  errors,
}))
