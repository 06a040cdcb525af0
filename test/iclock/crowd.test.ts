/** Senders that keep connections for nothing: their number, time and bytes are bounded, and terminals are served all the while. */
import { connect, type Socket } from "node:net"
import { afterEach, expect, it } from "vitest"
import type { FrontLimits } from "../../src/iclock/front.ts"
import { becomes } from "../support/until.ts"
import { type Node, openNode, rules, students } from "./node.ts"

const SN = "TSTA240300017"
const MB = 1024 * 1024
let node: Node
const senders = new Set<Socket>()
afterEach(async () => {
  const all = [...senders]
  senders.clear()
  for (const socket of all) socket.resetAndDestroy()
  await node.close()
})

const open = async (limits: FrontLimits) => {
  node = await openNode({ tables: [students], devices: { people: rules.people }, limits })
  await node.approve(SN, "UTC")
}

/** Says `first`, then a byte now and then, and comes again when it is shown out. */
const crawl = (first: string): void => {
  const socket = connect(node.port, "127.0.0.1")
  senders.add(socket)
  socket.write(first)
  const drip = setInterval(() => socket.write("x"), 100)
  socket.on("error", () => undefined)
  socket.on("close", () => {
    clearInterval(drip)
    if (senders.delete(socket)) setTimeout(() => senders.size > 0 && crawl(first), 50)
  })
}

const upload = (n: number, lines: number) =>
  node.post(
    `/iclock/cdata?SN=${SN}&table=ATTLOG&Stamp=9999`,
    Array.from({ length: lines }, (_, i) => `${n * lines + i + 1}\t2026-03-03 07:41:15\t0\t1\n`).join(""),
  )

it.each([
  ["a head", "GET /iclock/getrequest?SN="],
  ["a body", `POST /iclock/cdata?SN=${SN}&table=ATTLOG HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n`],
  ["a body without a length", `POST /iclock/cdata?SN=${SN}&table=ATTLOG HTTP/1.1\r\n\r\n`],
  ["chunks", `POST /iclock/cdata?SN=${SN}&table=ATTLOG HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nfffff\r\n`],
])("%s that never ends, on every connection that there is: a terminal polls and its punches are stored", async (_, first) => {
  await open({ connections: 20, perAddress: 20, inboxBytes: 8 * MB })
  for (let i = 0; i < 40; i++) crawl(first)
  for (let n = 0; n < 3; n++) {
    // Newcomers do not give way to each other; a terminal that finds the door shut comes again.
    await becomes(
      () => node.get(`/iclock/getrequest?SN=${SN}`),
      ({ body }) => body === "OK",
    )
    await becomes(
      () => upload(n, 20),
      ({ body }) => body === "OK: 20",
    )
  }
  expect(node.rows("SELECT count(*) FROM punches")).toEqual([[60n]])
})

it("unfinished bodies that fill the room for all: the largest leaves, and a terminal's is taken", async () => {
  await open({ connections: 100, perAddress: 100, inboxBytes: MB })
  let ended = 0
  for (let i = 0; i < 3; i++) {
    const socket = connect(node.port, "127.0.0.1")
    senders.add(socket)
    socket.on("error", () => undefined)
    socket.on("close", () => ended++)
    socket.write(`POST /iclock/cdata?SN=${SN}&table=ATTLOG HTTP/1.1\r\nContent-Length: 9000000\r\n\r\n${"x".repeat(320_000)}`)
  }
  for (let n = 0; n < 3; n++) expect((await upload(n, 6_000)).body).toBe("OK: 6000")
  expect(ended).toBeGreaterThan(0)
  expect(node.rows("SELECT count(*) FROM punches")).toEqual([[18_000n]])
})
