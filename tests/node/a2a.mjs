// The JavaScript SDK of A2A against the gateway, over one binding: card, stream, question, list, cancel and errors.
import { ClientFactory, ClientFactoryOptions, JsonRpcTransportFactory, RestTransportFactory } from '@a2a-js/sdk/client'
import { Role, TaskState } from '@a2a-js/sdk'

const [url, binding] = process.argv.slice(2)
const transports = [binding === 'JSONRPC' ? new JsonRpcTransportFactory() : new RestTransportFactory()]
const client = await new ClientFactory({ ...ClientFactoryOptions.default, transports }).createFromUrl(url)

const request = (text, fields = {}, metadata = undefined) => ({
  tenant: '',
  message: {
    messageId: crypto.randomUUID(),
    contextId: '',
    taskId: '',
    role: Role.ROLE_USER,
    parts: [{ content: { $case: 'text', value: text }, metadata: undefined, filename: '', mediaType: '' }],
    metadata: undefined,
    extensions: [],
    referenceTaskIds: [],
    ...fields
  },
  configuration: undefined,
  metadata
})
const join = (artifacts) => artifacts.flatMap((artifact) => artifact.parts).map((part) => part.content?.value).join('')
const stateOf = (task) => TaskState[task.status.state]

let streamed = ''
const kinds = []
let streamedId
for await (const { payload } of client.sendMessageStream(request('What is 23*19?'))) {
  kinds.push(payload.$case)
  if (payload.$case === 'task') streamedId = payload.value.id
  if (payload.$case === 'artifactUpdate') streamed += join([payload.value.artifact])
}
const got = await client.getTask({ tenant: '', id: streamedId, historyLength: undefined })

const asked = await client.sendMessage(request('Add a task to rest', {}, { approval: 'always' }))
const answered = await client.sendMessage(request('yes', { taskId: asked.id, contextId: asked.contextId }))
const listed = await client.listTasks({
  tenant: '', contextId: asked.contextId, status: 0, pageSize: 10, pageToken: '', historyLength: undefined,
  statusTimestampAfter: undefined, includeArtifacts: true
})
const errors = []
for (const attempt of [
  () => client.cancelTask({ tenant: '', id: answered.id, metadata: undefined }),
  () => client.getTask({ tenant: '', id: crypto.randomUUID(), historyLength: undefined })
]) {
  await attempt().catch((error) => errors.push(error.constructor.name))
}
console.log(JSON.stringify({
  kinds,
  streamed,
  got: { text: join(got.artifacts), state: stateOf(got) },
  asked: stateOf(asked),
  answered: { state: stateOf(answered), same: answered.id === asked.id },
  listed: listed.tasks.map((task) => task.id === asked.id),
  errors
}))
