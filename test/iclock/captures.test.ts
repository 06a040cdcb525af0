/** Every file of `device/captures`, sent as it stands to a school node: the answer, and what is stored after it. */
import { readdirSync, readFileSync } from "node:fs"
import { afterEach, expect, it } from "vitest"
import { type Node, openNode, parseReply } from "./node.ts"

const folder = new URL("../../device/captures/", import.meta.url)
const SN = "TSTA240300017"
const OPTIONS = /^GET OPTION FROM: TSTA240300017\n(.*\n)+PushOptionsFlag=1\n$/

type Stored = readonly [sql: string, rows: ReadonlyArray<ReadonlyArray<unknown>>]

interface Expected {
  /** null: the connection ends without an answer. */
  readonly body: string | RegExp | null
  readonly status?: number
  readonly stored?: Stored
}

const punches = (...rows: ReadonlyArray<ReadonlyArray<string>>): Stored => ["SELECT pin, at, status, verify FROM punches ORDER BY at, pin", rows]
const users = (...rows: ReadonlyArray<ReadonlyArray<string | null>>): Stored => ["SELECT pin, name, card FROM schoolbus_iclock_user", rows]

const KEPT_NOTHING: Stored = [
  "SELECT (SELECT count(*) FROM schoolbus_iclock_event) + (SELECT count(*) FROM schoolbus_iclock_reject) + (SELECT count(*) FROM schoolbus_iclock_user)",
  [[0n]],
]

const expected: Readonly<Record<string, Expected>> = {
  "speedface-v5l-2.4.1-handshake": { body: OPTIONS },
  "speedface-v5l-2.4.1-options": { body: "OK", stored: ["SELECT model, users_reported FROM devices", [["SpeedFace-V5L[TD]", 214n]]] },
  "speedface-v5l-2.4.1-attlog": {
    body: "OK: 2",
    stored: punches(["1201", "2025-03-03 07:41:09", "0", "1"], ["7", "2025-03-03 07:41:15", "0", "15"]),
  },
  "speedface-v5l-2.4.1-operlog": { body: "OK: 2", stored: users(["1201", "Amina Okafor", "123456789"]) },
  "speedface-v5l-2.4.1-biodata": { body: "OK: 1", stored: ["SELECT count(*) FROM schoolbus_iclock_event", [[0n]]] },
  "speedface-v5l-2.4.1-attphoto": { body: "OK" },
  "k40-6.60-getrequest-info": { body: "OK", stored: ["SELECT firmware, punches_reported FROM devices", [["Ver 6.60 Apr 2 2020", 5120n]]] },
  "k40-6.60-devicecmd": { body: "OK" },
  "k40-6.60-devicecmd-info": { body: "OK", stored: ["SELECT model, users_reported FROM devices", [["K40/ID", 214n]]] },
  "oldest-http-1.0-attlog": { body: "OK: 1", stored: punches(["7", "2025-03-03 07:41:15", "0", "1"]) },
  "oldest-http-1.0-attlog-no-table": { body: "OK: 1", stored: punches(["7", "2025-03-03 07:41:15", "0", "1"]) },
  "oldest-http-1.0-empty-upload": { body: "OK" },
  "oldest-http-1.0-handshake": { body: OPTIONS },
  "x100-c-gb2312-operlog": { body: "OK: 1", stored: users(["12", "李明", null]) },
  "silkbio-101tc-aspx-attlog": { body: "OK: 1", stored: punches(["12", "2025-03-03 07:41:15", "0", "1"]) },
  "access-3.1.2-registry": { body: `RegistryCode=${SN}` },
  "access-3.1.2-push": { body: /^ServerVersion=3\.1\.2\n(.*\n)+TimeoutSec=10\n$/ },
  "access-3.1.2-rtlog": { body: "OK", stored: punches(["7", "2025-03-03 07:41:15", "0", "15"]) },
  "access-3.1.2-tabledata-user": { body: "user=1", stored: users(["7", "Amina Okafor", null]) },
  "speedface-v5l-2.4.1-errorlog": { body: "OK", stored: ["SELECT count(*) FROM schoolbus_iclock_event", [[1n]]] },
  "speedface-v5l-2.4.1-biophoto": { body: "OK: 2", stored: KEPT_NOTHING },
  "k40-6.60-userinfo": { body: "OK: 1", stored: users(["1201", "Amina Okafor", "123456789"]) },
  "k40-6.60-attlog-key-value": { body: "OK: 1", stored: punches(["7", "2025-03-03 07:41:15", "0", "1"]) },
  "oldest-http-1.0-devicecmd-query": { body: "OK" },
  "oldest-http-1.0-operlog-opstamp": { body: "OK: 2", stored: users(["7", "Amina", "123456789"]) },
  "access-3.1.2-handshake": { body: "OK", stored: ["SELECT family, push_version FROM devices", [["acc", "3.1.2"]]] },
  "access-3.1.2-querydata-user": { body: "user=2", stored: users(["7", "Amina Okafor", "123456789"], ["9", "Head", null]) },
  "access-3.1.2-querydata-options": {
    body: "OK",
    stored: ["SELECT model, firmware, users_reported, punches_reported FROM devices", [["SenseFace 2A", "ZAM70-NF20-Ver1.0.6", 2n, 31n]]],
  },
  "access-3.1.2-tabledata-transaction": { body: "transaction=2", stored: punches(["7", "2025-03-03 07:41:15", "0", "15"]) },
  "access-3.1.2-rtstate": { body: "OK" },
  "access-3.1.2-devicecmd": { body: "OK" },
  "access-3.1.2-rtdata": { body: /^DateTime=\d{9},ServerTZ=\+0300$/ },
  "access-3.1.2-ping": { body: "OK" },
  "damaged-utf16-attlog": { body: /^OK: \d+$/, stored: punches() },
  "damaged-two-lengths": { body: "not understood", status: 400, stored: punches() },
  "damaged-attlog-lines": { body: "OK: 4", stored: punches(["7", "2025-03-03 07:41:15", "0", "1"], ["9", "2025-03-03 07:41:17", "0", "1"]) },
  "damaged-cut-body": { body: null, stored: punches() },
  "damaged-tls-hello": { body: "not understood", status: 400 },
}

let node: Node
afterEach(() => node.close())

const files = readdirSync(folder).filter((file) => file.endsWith(".http"))

it("every capture has its expectation", async () => {
  node = await openNode()
  expect(files.map((file) => file.replace(".http", "")).sort()).toEqual(Object.keys(expected).sort())
})

it.each(files)("%s", async (file) => {
  node = await openNode()
  await node.approve(SN)
  const want = expected[file.replace(".http", "")] ?? { body: null }
  const bytes = await node.send(readFileSync(new URL(file, folder)), true)
  if (want.body === null) expect(bytes.length).toBe(0)
  else {
    const reply = parseReply(bytes)
    expect(reply.status).toBe(want.status ?? 200)
    if (typeof want.body === "string") expect(reply.body).toBe(want.body)
    else expect(reply.body).toMatch(want.body)
    expect(reply.head).toMatch(
      /^HTTP\/1\.1 \d{3} [A-Za-z ]+\r\nDate: [^\r]+ GMT\r\nContent-Type: text\/plain\r\nContent-Length: \d+\r\nConnection: close$/,
    )
  }
  if (want.stored !== undefined) expect(node.rows(want.stored[0])).toEqual(want.stored[1])
})
