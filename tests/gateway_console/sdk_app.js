// A page of an MCP App, with the official SDK: it shows what its host tells it.
import { App } from "@modelcontextprotocol/ext-apps";

const app = new App({ name: "seats", version: "1" });
const show = (id, value) => {
  document.getElementById(id).textContent = typeof value === "string" ? value : JSON.stringify(value);
};
app.ontoolinput = ({ arguments: given }) => show("input", given);
app.ontoolresult = ({ content, structuredContent }) => {
  show("result", structuredContent ?? content[0].text);
  app.callServerTool({ name: "seats_list_seats", arguments: {} }).then(
    () => show("called", "called"),
    error => show("called", `refused: ${error.message}`),
  );
};
app.connect().then(() => show("host", `${app.getHostVersion().name} ${app.getHostContext().theme}`));
