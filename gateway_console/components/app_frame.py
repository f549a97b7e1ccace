"""Frames of MCP Apps' pages, which have no origin.

A page learns the call and its result, and nothing else.
"""

import json
from typing import Any

from nicegui import ui

JsonObject = dict[str, Any]
# The page speaks JSON-RPC over postMessage. The host tells it the call and its result, and refuses everything else.
_HOST = """
const frame = getHtmlElement(%(id)d), state = %(state)s;
const post = message => frame.contentWindow && frame.contentWindow.postMessage({jsonrpc: '2.0', ...message}, '*');
const listen = event => {
  if (!document.contains(frame)) { window.removeEventListener('message', listen); return; }
  const data = event.data;
  if (event.source !== frame.contentWindow || !data || data.jsonrpc !== '2.0' || !data.method) return;
  if (data.method === 'ui/initialize') post({id: data.id, result: state.host});
  else if (data.method === 'ui/notifications/initialized') {
    post({method: 'ui/notifications/tool-input', params: {arguments: state.arguments}});
    post({method: 'ui/notifications/tool-result', params: state.result});
  } else if (data.method === 'ui/notifications/size-changed') {
    const height = Number(data.params && data.params.height);
    if (height > 0) frame.style.height = Math.min(height, 800) + 'px';
  } else if (data.method === 'ping') post({id: data.id, result: {}});
  else if (data.id !== undefined) post({id: data.id, error: {code: -32601, message: 'This host does not offer it.'}});
};
window.addEventListener('message', listen);
frame.srcdoc = state.page;
"""
_HOST_CONTEXT: JsonObject = {
    "theme": "light",
    "displayMode": "inline",
    "availableDisplayModes": ["inline"],
    "containerDimensions": {"maxHeight": 800},
    "platform": "web",
}
_SANDBOX: JsonObject = {"sandbox": "allow-scripts", "title": "MCP App", "referrerpolicy": "no-referrer"}


def draw_frame(page: str, arguments: object = None, result: JsonObject | None = None) -> None:
    """Draw a page of an MCP App.

    A page that asks is told the call and its result.
    """
    frame = (
        ui.element("iframe")
        .classes("w-full")
        .style("height:24rem;border:1px solid var(--line);border-radius:8px;background:#fff;color-scheme:light")
    )
    frame.props.update(_SANDBOX)
    state: JsonObject = {
        "page": page,
        "arguments": arguments if isinstance(arguments, dict) else {},
        "result": result or {"content": []},
        "host": {
            "protocolVersion": "2026-01-26",
            "hostInfo": {"name": "agent-gateway-console", "version": "1"},
            "hostCapabilities": {},
            "hostContext": _HOST_CONTEXT,
        },
    }
    # `</script>` and the like cannot end it: the code is sent over the WebSocket, not written into HTML.
    ui.run_javascript(_HOST % {"id": frame.id, "state": json.dumps(state)})
