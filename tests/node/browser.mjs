// A front end's reader: fetch, a text decoder, frames cut at blank lines; it hangs up once and goes on where it was.
const base = process.argv[2]

async function* frames(response) {
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

function show(page, event) {
  if (event.type === 'text.delta') page.text += event.text
  if (event.type === 'tool.call') page.tools.push(event.tool)
  if (event.type === 'turn.completed') page.finish = event.finish_reason
  if (event.id) page.last = event.id
}

const page = { text: '', tools: [], finish: null, last: 0, resumed: false }
const leaving = new AbortController()
const response = await fetch(`${base}/api/v1/chat/stream`, {
  method: 'POST',
  headers: { 'Content-Type': 'application/json' },
  body: JSON.stringify({ messages: [{ role: 'user', content: 'What is 23*19? Then äöü 🐪' }], on_disconnect: 'continue' }),
  signal: leaving.signal,
})
const turn = response.headers.get('X-Turn-Id')
try {
  for await (const event of frames(response)) {
    show(page, event)
    if (event.type === 'tool.call') leaving.abort() // the laptop closes
    leaving.signal.throwIfAborted() // whatever else had come by then
  }
} catch (error) {
  if (error.name !== 'AbortError') throw error
  page.resumed = true
  const again = await fetch(`${base}/api/v1/turns/${turn}/events`, { headers: { 'Last-Event-ID': String(page.last) } })
  for await (const event of frames(again)) show(page, event)
}

const refused = await fetch(`${base}/api/v1/chat/stream`, {
  method: 'POST',
  headers: { 'Content-Type': 'application/json' },
  body: JSON.stringify({ messages: [] }),
})
const kept = await (await fetch(`${base}/api/v1/turns/${turn}`)).json()
console.log(JSON.stringify({ ...page, kept: kept.response, refused: [refused.status, (await refused.json()).error.code] }))
