// Reads a stream with fetch as a front end does, aborts it once and resumes it after the last event.
const base = process.argv[2]

async function* readEvents(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader()
  let buffer = ''
  for (;;) {
    const { done, value } = await reader.read()
    if (done) return
    buffer += value
    let end
    while ((end = buffer.indexOf('\n\n')) >= 0) {
      const fields = Object.fromEntries(
        buffer
          .slice(0, end)
          .split('\n')
          .filter((line) => !line.startsWith(':'))
          .map((line) => [line.slice(0, line.indexOf(': ')), line.slice(line.indexOf(': ') + 2)]),
      )
      buffer = buffer.slice(end + 2)
      if (fields.data === '[DONE]') return
      if (fields.data) yield { id: fields.id && Number(fields.id), type: fields.event, ...JSON.parse(fields.data) }
    }
  }
}

function addEvent(page, event) {
  if (event.type === 'text.delta') page.text += event.text
  if (event.type === 'tool.call') page.tools.push(event.tool)
  if (event.type === 'turn.completed') page.finish = event.finish_reason
  if (event.id) page.last = event.id
}

const page = { text: '', tools: [], finish: null, last: 0, resumed: false }
const aborter = new AbortController()
const response = await fetch(`${base}/api/v1/chat/stream`, {
  method: 'POST',
  headers: { 'Content-Type': 'application/json' },
  body: JSON.stringify({ messages: [{ role: 'user', content: 'What is 23*19? Then äöü 🐪' }], on_disconnect: 'continue' }),
  signal: aborter.signal,
})
const turn = response.headers.get('X-Turn-Id')
try {
  for await (const event of readEvents(response)) {
    addEvent(page, event)
    if (event.type === 'tool.call') aborter.abort() // as when a laptop goes to sleep
    aborter.signal.throwIfAborted() // ignore events that were received before
  }
} catch (error) {
  if (error.name !== 'AbortError') throw error
  page.resumed = true
  const resumed = await fetch(`${base}/api/v1/turns/${turn}/events`, { headers: { 'Last-Event-ID': String(page.last) } })
  for await (const event of readEvents(resumed)) addEvent(page, event)
}

const refused = await fetch(`${base}/api/v1/chat/stream`, {
  method: 'POST',
  headers: { 'Content-Type': 'application/json' },
  body: JSON.stringify({ messages: [] }),
})
const stored = await (await fetch(`${base}/api/v1/turns/${turn}`)).json()
console.log(JSON.stringify({ ...page, stored: stored.response, refused: [refused.status, (await refused.json()).error.code] }))
