/** Pins of people who are on several terminals: what one terminal has them under moves nobody on another. */
import { afterEach, expect, it } from "vitest"
import { timestamptz } from "../../src/iclock/clock.ts"
import { type Beginnings, readDue } from "../../src/iclock/due.ts"
import { column } from "../support/school-file.ts"
import { until } from "../support/until.ts"
import { type Node, openNode, students } from "./node.ts"

let node: Node
afterEach(() => node.close())

const pinsOf = (device: number) => node.rows(`SELECT pin, to_at IS NULL FROM device_user_mappings WHERE device_id = ${device} ORDER BY pin`)
const serve = async (serial: string): Promise<ReadonlyArray<string>> => {
  const lines = (await node.get(`/iclock/getrequest?SN=${serial}`)).body.split("\n").filter((line) => line.startsWith("C:"))
  await node.post(`/iclock/devicecmd?SN=${serial}`, lines.map((line) => `ID=${line.split(":")[1]}&Return=0&CMD=DATA\n`).join(""))
  return lines.map((line) => line.replace(/^C:\d+:/, ""))
}

it("a claimed pin of the past moves nobody, also where another terminal is", async () => {
  node = await openNode()
  const amina = await node.student("Amina")
  await node.approve("GATE0001", "UTC")
  await node.approve("DOOR0002", "UTC")
  await serve("GATE0001")
  await serve("DOOR0002")
  await node.post("/iclock/cdata?SN=GATE0001&table=ATTLOG&Stamp=1", "77\t2026-03-03 07:41:15\t0\t1\n")
  await node.run(node.roster.claim("GATE0001", { pin: "77", person: amina }))
  await node.run(node.roster.settle)
  expect(pinsOf(1)).toEqual([
    ["1", 1n],
    ["77", 0n],
  ])
  expect(pinsOf(2)).toEqual([["1", 1n]])
  expect([await serve("GATE0001"), await serve("DOOR0002")]).toEqual([[], []])
})

it("a number that one terminal has used already leaves the person's number on the others alone", async () => {
  node = await openNode()
  await node.student("Amina")
  await node.approve("HALL0000", "UTC")
  await node.approve("GATE0001", "UTC")
  await serve("HALL0000")
  await serve("GATE0001")
  await node.approve("DOOR0002", "UTC")
  // Before its people were sent: somebody else's punches, of long ago.
  await node.post("/iclock/cdata?SN=DOOR0002&table=options", "TransactionCount=2,UserCount=0")
  await node.post("/iclock/cdata?SN=DOOR0002&table=ATTLOG&Stamp=1", "1\t2020-03-03 07:41:15\t0\t1\n2\t2020-03-03 07:41:15\t0\t1\n")
  expect(node.rows("SELECT pin, person_id FROM punches ORDER BY pin")).toEqual([
    ["1", null],
    ["2", null],
  ])
  expect(node.rows("SELECT count(*) FROM attendance")).toEqual([[0n]])
  await node.run(node.roster.settle)
  await node.run(node.roster.sync("GATE0001"))
  expect(await serve("DOOR0002")).toEqual([expect.stringMatching(/^DATA UPDATE USERINFO PIN=3\tName=Amina/)])
  await node.post("/iclock/cdata?SN=DOOR0002&table=ATTLOG&Stamp=1", "3\t2020-03-03 07:41:16\t0\t1\n1\t2020-03-03 07:41:17\t0\t1\n")
  expect(node.rows("SELECT pin, person_id IS NOT NULL FROM punches ORDER BY at, pin")).toEqual([
    ["1", 0n],
    ["2", 0n],
    ["3", 1n],
    ["1", 0n],
  ])
  expect(pinsOf(3)).toEqual([["3", 1n]])
  expect(pinsOf(2)).toEqual([["1", 1n]])
  expect(await serve("GATE0001")).toEqual([expect.stringMatching(/^DATA UPDATE USERINFO PIN=1\tName=Amina/)])
})

it("people wait until the punches that a terminal had before are here: those were made by others", async () => {
  node = await openNode()
  await node.student("Amina")
  await node.approve("GATE0001", "UTC")
  await node.get("/iclock/getrequest?SN=GATE0001&INFO=Ver 6.60,0,0,3,10.0.0.1")
  const upload = (pin: string) => node.post("/iclock/cdata?SN=GATE0001&table=ATTLOG&Stamp=1", `${pin}\t2020-03-03 07:41:15\t0\t1\n`)
  for (const pin of ["1", "2", "4"]) {
    expect(await serve("GATE0001")).toEqual([])
    await upload(pin)
    await node.run(node.roster.settle)
  }
  await until("the first people", async () => {
    const [line] = await serve("GATE0001")
    return line !== undefined && /^DATA UPDATE USERINFO PIN=3\tName=Amina/.test(line)
  })
  expect(node.rows("SELECT pin, person_id FROM punches ORDER BY pin")).toEqual([
    ["1", null],
    ["2", null],
    ["4", null],
  ])
})

it("a memory of which nothing comes for a while is not waited for, nor one that has no end", async () => {
  node = await openNode()
  await node.student("Amina")
  const device = { ...(await node.approve("GATE0001", "UTC")), punches_reported: 1000 }
  const beginnings: Beginnings = { met: new Set(), memorySince: new Map() }
  const dueAfter = async (seconds: number) =>
    (await node.run(node.school.file.read((tx) => readDue(tx, beginnings, device, Date.now() + seconds * 1000)))).due.length
  expect([await dueAfter(0), await dueAfter(40)]).toEqual([0, 0])
  await node.post("/iclock/cdata?SN=GATE0001&table=ATTLOG&Stamp=1", "9\t2020-03-03 07:41:15\t0\t1\n")
  await node.run(node.roster.settle)
  const receivedAt = (seconds: number) => node.program("UPDATE punches SET received_at = ?", [timestamptz(Date.now() + seconds * 1000)])
  await receivedAt(30)
  expect(await dueAfter(60)).toBe(0)
  await receivedAt(1_850)
  expect(await dueAfter(1_790)).toBe(0)
  expect(await dueAfter(1_860)).toBe(1)

  beginnings.met.clear()
  beginnings.memorySince.clear()
  await receivedAt(0)
  expect([await dueAfter(0), await dueAfter(60)]).toEqual([0, 1])
})

it("what a pin of a person's own row did before the terminal was told of it is the person's all the same", async () => {
  node = await openNode({
    tables: [{ ...students, columns: [...students.columns, column("badge", "text")] }],
    devices: { people: { "public.students": { id: "id", name: "full_name", pin: "badge" } } },
  })
  await node.program("INSERT INTO students (id, school_id, full_name, badge, is_active) VALUES ('p1', 's1', 'Amina', '500', 1)")
  await node.approve("GATE0001", "UTC")
  await node.post("/iclock/cdata?SN=GATE0001&table=options", "TransactionCount=1,UserCount=0")
  await node.post("/iclock/cdata?SN=GATE0001&table=ATTLOG&Stamp=1", "500\t2020-03-03 07:41:15\t0\t1\n")
  await node.run(node.roster.settle)
  expect(node.rows("SELECT pin, person_id FROM punches")).toEqual([["500", "p1"]])
  expect(pinsOf(1)).toEqual([["500", 1n]])
})
