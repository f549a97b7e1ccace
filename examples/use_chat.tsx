// A chat page with the AI SDK: `useChat` needs the gateway's URL and nothing else.
import { useChat } from '@ai-sdk/react'
import { DefaultChatTransport, lastAssistantMessageIsCompleteWithApprovalResponses, type UIMessage } from 'ai'
import { useState } from 'react'
import { createRoot } from 'react-dom/client'

const query = new URLSearchParams(location.search)
const gateway = query.get('gateway') ?? 'http://127.0.0.1:8000'
const approval = query.get('approval') ?? 'never'
const transport = new DefaultChatTransport({
  api: `${gateway}/api/v1/ui-messages`,
  body: { x_gateway: { approval } }, // optional, as are `model`, `system` and `tools`
})

function Part({ part, decide }: { part: UIMessage['parts'][number]; decide: (id: string, approved: boolean) => void }) {
  if (part.type === 'text') return <p className="text">{part.text}</p>
  if (part.type === 'reasoning') return <p className="reasoning">{part.text}</p>
  if (part.type !== 'dynamic-tool') return null
  return (
    <div className="tool">
      {part.toolName} {JSON.stringify(part.input)}: {part.state}
      {part.state === 'output-available' && <code>{JSON.stringify(part.output)}</code>}
      {part.state === 'approval-requested' && (
        <>
          <button onClick={() => decide(part.approval.id, true)}>Allow</button>
          <button onClick={() => decide(part.approval.id, false)}>Decline</button>
        </>
      )}
    </div>
  )
}

function ChatPage() {
  const [text, setText] = useState('')
  const chat = useChat({
    id: query.get('chat') ?? undefined,
    resume: true, // a page that is loaded again follows the answer
    transport,
    sendAutomaticallyWhen: lastAssistantMessageIsCompleteWithApprovalResponses,
  })
  const decide = (id: string, approved: boolean) => void chat.addToolApprovalResponse({ id, approved })
  return (
    <main>
      {chat.messages.map((message) => (
        <section key={message.id} className={message.role}>
          {message.parts.map((part, index) => (
            <Part key={index} part={part} decide={decide} />
          ))}
        </section>
      ))}
      <output>{chat.error ? `error: ${chat.error.message}` : chat.status}</output>
      <form
        onSubmit={(event) => {
          event.preventDefault()
          void chat.sendMessage({ text })
          setText('')
        }}
      >
        <input aria-label="Message" value={text} onChange={(event) => setText(event.target.value)} />
        <button>Send</button>
        <button type="button" onClick={() => void chat.stop()}>
          Stop
        </button>
      </form>
    </main>
  )
}

createRoot(document.body.appendChild(document.createElement('div'))).render(<ChatPage />)
