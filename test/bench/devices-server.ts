/** `node` (with so many terminals, with or without `attendance`) or `bare`: what the benchmark of terminals calls, in a process of its own. Says its port, ends with its input. */
import process from "node:process"
import { Elysia } from "elysia"
import { serve } from "../../src/runtime.ts"
import { openNode, rules, students } from "../iclock/node.ts"

const [kind = "", count = "1", attendance = ""] = process.argv.slice(2)
const say = (port: number, file = ""): void => void process.stdout.write(`${JSON.stringify({ port, file })}\n`)

if (kind === "bare") {
  const app = new Elysia().get("/iclock/getrequest", () => new Response("OK", { headers: { "content-type": "text/plain" } }))
  const server = await serve({ port: 0, hostname: "127.0.0.1", idleSeconds: 60, maxBodyBytes: 1024, fetch: (request) => app.handle(request) })
  say(server.port)
} else {
  const node = await openNode(attendance === "attendance" ? {} : { tables: [students], devices: { people: rules.people } })
  for (let i = 0; i < 200; i++) await node.student(`Pupil ${i}`)
  for (let i = 1; i <= Number(count); i++) await node.run(node.devices.approve(`BENCH${String(i).padStart(4, "0")}`, { zone: "UTC" }))
  await node.run(node.roster.settle)
  // Everything is confirmed: what is measured is a terminal with nothing to do.
  await node.program("UPDATE device_commands SET status = 'done'")
  await node.program("UPDATE device_user_sync_status SET status = 'synced'")
  await node.run(node.commands.changed())
  say(node.port, node.school.path)
}
process.stdin.on("end", () => process.exit(0)).resume()
