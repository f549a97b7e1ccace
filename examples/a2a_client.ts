// Reach the gateway as an agent, with the JavaScript SDK of A2A: find its card, and stream a task.
//
// npm install @a2a-js/sdk; node examples/a2a_client.ts "What is 23*19?"   (Node 22.18 or newer)
import { Role, TaskState } from '@a2a-js/sdk'
import { ClientFactory } from '@a2a-js/sdk/client'

const url = process.env.GATEWAY_URL ?? 'http://127.0.0.1:8000'
const prompt = process.argv[2] ?? 'What is 23*19?'

const client = await new ClientFactory().createFromUrl(url)
const message = {
  messageId: crypto.randomUUID(),
  contextId: '',
  taskId: '',
  role: Role.ROLE_USER,
  parts: [{ content: { $case: 'text' as const, value: prompt }, metadata: undefined, filename: '', mediaType: '' }],
  metadata: undefined,
  extensions: [],
  referenceTaskIds: []
}
const request = { tenant: '', message, configuration: undefined, metadata: undefined }
for await (const { payload } of client.sendMessageStream(request)) {
  if (payload?.$case === 'artifactUpdate') {
    for (const part of payload.value.artifact?.parts ?? []) {
      if (part.content?.$case === 'text') process.stdout.write(part.content.value)
    }
  } else if (payload?.$case === 'statusUpdate' && payload.value.status?.state === TaskState.TASK_STATE_COMPLETED) {
    console.log('\ncompleted')
  }
}
