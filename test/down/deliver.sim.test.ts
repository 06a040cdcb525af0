/**
 * Random local edits, edits and moves at the hub, pushes whose answers are lost, verdicts, decisions, pulls of every shape and
 * kills, in any order, on two tables of different classes; the seed is in the test's name. `SIM_SEEDS=500` runs more,
 * `SIM_SEED=17` runs one.
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import { expect, test } from "vitest"
import type { LibsqlFile } from "../../src/libsql/client.ts"
import type { Change, Exception } from "../../src/model/change.ts"
import { localKey } from "../../src/model/key.ts"
import type { Wire } from "../../src/model/value.ts"
import { openPulledSchool, type PageOptions, type PulledSchool, SCHOOL, type Values } from "../support/pretend-hub.ts"
import { column, table } from "../support/school-file.ts"

const SEEDS =
  process.env["SIM_SEED"] === undefined
    ? Array.from({ length: Number(process.env["SIM_SEEDS"] ?? 25) }, (_, i) => i + 1)
    : [Number(process.env["SIM_SEED"])]
const STEPS = 60

/** Alike but for their names: a unique `username`, two texts and a number. */
const columns = ["name", "username", "phone", "points"] as const
const make = (local: string, priority: "medium" | "low") =>
  table(
    local,
    [column("id"), column("school_id"), column("name", "text", { notNull: true }), column("username"), column("phone"), column("points", "int")],
    { unique: [["username"]], priority },
  )
const tables = [make("pupils", "medium"), make("guests", "low")] as const
type Name = "pupils" | "guests"
const ELSEWHERE = "s2"
const isKilled = "killed"

const random = (seed: number) => {
  let state = seed * 2654435761
  const next = () => {
    state = (state + 0x6d2b79f5) | 0
    let t = Math.imul(state ^ (state >>> 15), 1 | state)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296
  }
  const below = (n: number) => Math.floor(next() * n)
  return { below, chance: (p: number) => next() < p, pick: <A>(list: ReadonlyArray<A>): A => list[below(list.length)] as A }
}

class Simulation {
  readonly r
  readonly s: PulledSchool
  private deliver: PulledSchool["deliver"]
  private readonly log: Array<string> = []
  private value = 0
  /** Hashes of the batches in the hub's ledger, by number. */
  private readonly ledger = new Map<number, string>()
  /** Rows that stand in another school now. */
  private readonly away = new Map<string, Values>()

  constructor(s: PulledSchool, seed: number) {
    this.s = s
    this.deliver = s.deliver
    this.r = random(seed)
  }

  private key() {
    return `k${this.r.below(6)}`
  }

  private table(): Name {
    return this.r.chance(0.7) ? "pupils" : "guests"
  }

  private some(col: (typeof columns)[number]): Wire {
    if (col === "username") return this.r.chance(0.2) ? null : `u${this.r.below(5)}`
    if (col === "points") return this.r.below(4)
    return `${col}-${++this.value}`
  }

  private row(id: string): Values {
    return { id, school_id: SCHOOL, name: this.some("name"), username: this.some("username"), phone: this.some("phone"), points: this.some("points") }
  }

  local() {
    const local = this.table()
    const set = columns.filter(() => this.r.chance(0.4))
    const sql = this.r.pick<() => readonly [sql: string, args: ReadonlyArray<unknown>]>([
      () => {
        const { id, school_id, name, username, phone, points } = this.row(this.key())
        return [`INSERT INTO ${local} VALUES (?, ?, ?, ?, ?, ?)`, [id, school_id, name, username, phone, BigInt(Number(points))]] as const
      },
      () => {
        const values = set.map((col) => this.some(col))
        const assign = set.length === 0 ? "phone = phone" : set.map((col) => `${col} = ?`).join(", ")
        return [`UPDATE ${local} SET ${assign} WHERE id = ?`, [...values.map((v) => (typeof v === "number" ? BigInt(v) : v)), this.key()]] as const
      },
      () => [`DELETE FROM ${local} WHERE id = ?`, [this.key()]] as const,
      () => [`UPDATE ${local} SET id = ? WHERE id = ?`, [this.key(), this.key()]] as const,
      () => [`UPDATE ${local} SET school_id = '${ELSEWHERE}' WHERE id = ?`, [this.r.chance(0.3) ? this.key() : ""]] as const,
    ])()
    try {
      this.s.program(...sql)
      this.log.push(`local ${JSON.stringify(sql, (_, v) => (typeof v === "bigint" ? Number(v) : (v as unknown)))}`)
    } catch (error) {
      if (!/constraint/i.test(String(error))) throw error
    }
  }

  private isFree(local: Name, row: Values, except: ReadonlyArray<Wire>) {
    return (
      row["username"] === null ||
      this.s.hub.rows(local).every((other) => except.includes(other["id"] ?? null) || other["username"] !== row["username"])
    )
  }

  office() {
    const { hub } = this.s
    const local = this.table()
    const id = this.key()
    const present = hub.row(local, id)
    if (present !== null && this.r.chance(0.25)) {
      hub.remove(local, id)
      this.log.push(`office delete ${local} ${id}`)
      return
    }
    if (present === null && this.away.has(`${local} ${id}`)) return
    const fresh = this.row(id)
    const row =
      present === null
        ? fresh
        : ({ ...present, ...Object.fromEntries(columns.filter(() => this.r.chance(0.4)).map((col) => [col, fresh[col]])) } as Values)
    if (!this.isFree(local, row, [id])) return
    hub.put(local, row)
    this.log.push(`office ${local} ${JSON.stringify(row)}`)
  }

  /** A row leaves for another school, or comes back from it; also both in one transaction. */
  move() {
    const { hub } = this.s
    const local = this.table()
    const id = this.key()
    const at = `${local} ${id}`
    const present = hub.row(local, id)
    if (present !== null) {
      hub.remove(local, id)
      this.log.push(`move ${at} away`)
      this.away.set(at, present)
      if (this.r.chance(0.7)) return
    }
    const back = this.away.get(at)
    if (back === undefined || !this.isFree(local, back, [id])) return
    this.away.delete(at)
    hub.put(local, { ...back, phone: this.r.chance(0.5) ? (back["phone"] ?? null) : this.some("phone") })
    this.log.push(`move ${at} back`)
  }

  /** Usernames of some rows go round in one transaction; one of them may be deleted and hand its own on. */
  officeRotate() {
    const { hub } = this.s
    const local = this.table()
    const rows = hub.rows(local).slice(0, 2 + this.r.below(4))
    if (rows.length < 2) return
    const names = rows.map((row) => row["username"] ?? null)
    const gone = this.r.chance(0.3) ? 0 : -1
    if (gone === 0) hub.remove(local, String(rows[0]?.["id"]))
    for (const [i, row] of rows.entries()) {
      const username = names[(i + 1) % rows.length] ?? null
      if (i !== gone) hub.put(local, { ...row, username: gone === 0 && i === rows.length - 1 ? null : username })
    }
    this.log.push(`office rotate ${local} ${rows.map((row) => row["id"]).join()} ${gone}`)
  }

  private held(): ReadonlySet<string> {
    const open = this.s.hub.rows("schoolbus_quarantine").filter((row) => row["status"] === "open")
    return new Set(
      open.flatMap((row) => {
        const change = JSON.parse(String(row["change"])) as Change
        return keysOf(change).map((key) => `${change.table} ${key}`)
      }),
    )
  }

  /** vps_wins or manual, column by column; what cannot be written, or hangs on such a change, is quarantined. */
  private judge(change: Change): Exception | null {
    const { hub } = this.s
    const local = change.table.slice("public.".length) as Name
    const quarantined = (): Exception => {
      const record = `q-${change.id}`
      hub.put("schoolbus_quarantine", { id: record, school: SCHOOL, change_id: String(change.id), change: JSON.stringify(change), status: "open" })
      return { id: change.id, verdict: "quarantined", record, hold: true }
    }
    const lost: Exception = { id: change.id, verdict: "conflict" }
    const held = this.held()
    if (keysOf(change).some((key) => held.has(`${change.table} ${key}`)) || this.r.chance(0.06)) return quarantined()
    const mine = change.mine as Values
    if (mine["school_id"] !== undefined && mine["school_id"] !== SCHOOL) return quarantined()
    const id = String(change.key[0])
    const theirs = hub.row(local, id)
    if (change.op === "insert") {
      // A row that stands in another school is no business of this one.
      if (this.away.has(`${local} ${id}`)) return quarantined()
      if (theirs !== null) return lost
      if (!this.isFree(local, mine, [])) return quarantined()
      hub.put(local, mine)
      return null
    }
    if (theirs === null) return change.op === "delete" ? { id: change.id, verdict: "superseded" } : lost
    if (change.op === "delete") {
      if (columns.some((col) => theirs[col] !== change.base[col])) return lost
      hub.remove(local, id)
      return null
    }
    const set = Object.fromEntries(Object.entries(mine).filter(([col]) => theirs[col] === change.base[col]))
    const conflicts = Object.entries(mine).filter(([col, value]) => theirs[col] !== change.base[col] && theirs[col] !== value && col !== "id")
    const newId = change.newKey === undefined ? id : String(change.newKey[0])
    if (newId !== id && (hub.row(local, newId) !== null || this.away.has(`${local} ${newId}`))) return quarantined()
    const after = { ...theirs, ...set, id: newId } as Values
    if (!this.isFree(local, after, [id, newId])) return quarantined()
    if (newId !== id) hub.remove(local, id)
    if (newId !== id || Object.keys(set).length > 0) hub.put(local, after)
    if (conflicts.length === 0) return null
    if (newId !== id || this.r.chance(0.5)) return lost
    const record = `c-${change.id}`
    const asked = conflicts.map(([col]) => col)
    hub.put("schoolbus_conflicts", {
      id: record,
      school: SCHOOL,
      table_name: `${local} ${id}`,
      column_name: JSON.stringify(Object.fromEntries(conflicts)),
      status: "open",
    })
    return { id: change.id, verdict: "conflict", record, hold: true, columns: asked }
  }

  async freeze() {
    await this.s.freezeAll()
  }

  /** The next batch arrives at the hub, or one that it has already: whether its answer arrives does not matter, the ledger row does. */
  push(anew = true) {
    const unsettled = this.s.unsettled()
    const batch = unsettled.find(({ number }) => !this.ledger.has(number))
    const again = unsettled.filter(({ number }) => this.ledger.has(number))
    if (!anew && again.length > 0) {
      const { number, hash } = this.r.pick(again)
      if (this.ledger.get(number) !== hash) throw new Error(`batch ${number} is sent again with other bytes\n${this.log.join("\n")}`)
      this.log.push(`push ${number} again`)
      return true
    }
    if (batch === undefined) return false
    const exceptions = batch.changes.flatMap((change) => this.judge(change) ?? [])
    this.s.hub.ledger(batch.number, batch.hash, exceptions)
    this.ledger.set(batch.number, batch.hash)
    if (this.r.chance(0.6))
      this.s.program("UPDATE schoolbus_batch SET answered_at = 1, exceptions = ? WHERE number = ?", [JSON.stringify(exceptions), batch.number])
    this.log.push(`push ${batch.number} ${JSON.stringify(exceptions)}`)
    return true
  }

  decide(all: boolean) {
    const { hub } = this.s
    for (const row of hub.rows("schoolbus_quarantine")) {
      if (row["status"] !== "open" || (!all && this.r.chance(0.5))) continue
      hub.put("schoolbus_quarantine", { ...row, status: "discarded" })
      this.log.push(`discard ${row["id"]}`)
    }
    for (const row of hub.rows("schoolbus_conflicts")) {
      if (row["status"] !== "open" || (!all && this.r.chance(0.5))) continue
      const [local, id] = String(row["table_name"]).split(" ") as [Name, string]
      const mine = JSON.parse(String(row["column_name"])) as Values
      const theirs = hub.row(local, id)
      const after = theirs === null ? null : ({ ...theirs, ...mine } as Values)
      if (after !== null && this.r.chance(0.5) && this.isFree(local, after, [id])) hub.put(local, after)
      hub.put("schoolbus_conflicts", { ...row, status: "resolved" })
      this.log.push(`resolve ${row["id"]}`)
    }
  }

  newEpoch() {
    const { hub } = this.s
    hub.epoch = `e${this.value}-${hub.seq}`
    for (const [id, entry] of hub.entries) if (entry.row === null) hub.entries.delete(id)
    this.log.push("new epoch")
  }

  private rows(): ReadonlyMap<string, ReadonlyArray<unknown>> {
    return new Map<string, ReadonlyArray<unknown>>(
      tables.flatMap(({ local, name }) =>
        this.s.read(`SELECT id, name, username, phone, points FROM ${local}`).map((row) => [`${name} ${String(row[0])}`, row] as const),
      ),
    )
  }

  async restart() {
    this.deliver = await this.s.reopen()
    await this.s.run(this.deliver.resume)
    this.log.push("restart")
  }

  /** The node dies at its n-th write, before or after the commit. */
  private dying(): Promise<PulledSchool["deliver"]> {
    const { file } = this.s
    const at = 1 + this.r.below(6)
    const isAfter = this.r.chance(0.5)
    let writes = 0
    const mortal: LibsqlFile = {
      ...file,
      write: (body) =>
        Effect.suspend(() => {
          writes++
          if (writes < at) return file.write(body)
          return writes === at && isAfter ? Effect.andThen(file.write(body), Effect.die(isKilled)) : Effect.die(isKilled)
        }),
    }
    return this.s.reopen(mortal)
  }

  /** A pull of any shape; afterwards nothing that still waits may have changed. */
  async pull(last = false) {
    await this.s.freezeAll()
    const before = this.rows()
    const heldBefore = this.holds()
    const options: PageOptions = this.r.chance(0.5) ? {} : { lineRows: 1 + this.r.below(3), pageLines: 1 + this.r.below(3) }
    const isMortal = !last && this.r.chance(0.15)
    const deliver = isMortal ? await this.dying() : this.deliver
    for (let applied = false; !applied; ) {
      const { header, lines, trailer } = await this.s.nextPage(options, deliver)
      const isCut = !last && this.r.chance(0.2)
      const exit = await Effect.runPromiseExit(
        deliver.page(header, isCut ? lines.slice(0, this.r.below(lines.length + 1)) : lines, isCut ? null : trailer),
      )
      if (Exit.isFailure(exit)) {
        if (!isMortal || !String(exit.cause).includes(isKilled)) throw new Error(`${String(exit.cause)}\n${this.log.join("\n")}`)
        break
      }
      applied = exit.value.applied
      if (!last && this.r.chance(0.1)) break
    }
    this.log.push(`pull ${JSON.stringify(options)}`)
    if (isMortal) await this.restart()
    this.check(before, heldBefore)
  }

  private holds() {
    return new Set(
      this.s
        .read("SELECT t.name, h.key, h.col, h.record FROM schoolbus_hold h JOIN schoolbus_tables t ON t.id = h.tbl")
        .map(([name, key, col, record]) => JSON.stringify([`${name} ${String(key).slice(1, -1)}`, col, record])),
    )
  }

  private check(before: ReadonlyMap<string, ReadonlyArray<unknown>>, heldBefore: ReadonlySet<string>) {
    const after = this.rows()
    const position = { id: 0, name: 1, username: 2, phone: 3, points: 4 } as const
    const same = (key: string, cols: ReadonlyArray<string>, why: string) => {
      const [then, now] = [before.get(key), after.get(key)]
      const text = (row: typeof then) =>
        JSON.stringify(row === undefined ? null : cols.map((col) => String(row[position[col as keyof typeof position]])))
      if (text(then) !== text(now)) throw new Error(`${why} of ${key} was undone: ${text(then)} became ${text(now)}\n${this.log.join("\n")}`)
    }
    for (const batch of this.s.unsettled()) {
      for (const change of batch.changes) {
        for (const key of keysOf(change)) {
          same(
            `${change.table} ${key}`,
            change.op === "update" && change.newKey === undefined ? Object.keys(change.mine).filter((col) => col in position) : Object.keys(position),
            `the ${change.op} in batch ${batch.number}`,
          )
        }
      }
    }
    for (const hold of this.holds()) {
      if (!heldBefore.has(hold)) continue
      const [key, col] = JSON.parse(hold) as [string, string]
      if (col === "") same(key, Object.keys(position), "the held row")
      else if (before.has(key) && after.has(key)) same(key, [col], "the held value")
    }
  }

  async quiet() {
    for (let i = 0; i < 3; i++) {
      await this.freeze()
      while (this.push());
      this.decide(true)
      await this.pull(true)
    }
    const rows = [...this.rows()].map(([key, row]) => [key, ...row.map((v) => (typeof v === "bigint" ? Number(v) : v))]).sort()
    const hub = tables
      .flatMap(({ local, name }) =>
        this.s.hub.rows(local).map((row) => [`${name} ${row["id"]}`, row["id"], row["name"], row["username"], row["phone"], row["points"]]),
      )
      .sort()
    const left = ["changes", "schoolbus_behind", "schoolbus_hold", "schoolbus_stage", "schoolbus_staged"].map((name) => [
      name,
      Number(this.s.one(`SELECT count(*) FROM ${name}`)),
    ])
    expect({ rows, left }, this.log.join("\n")).toEqual({ rows: hub, left: left.map(([name]) => [name, 0]) })
  }
}

const keysOf = (change: Change): ReadonlyArray<string> =>
  [change.key, ...(change.newKey === undefined ? [] : [change.newKey])].map((key) => localKey(tables[0], key).slice(1, -1))

test.each(SEEDS)("no own edit is undone before its verdict, and once quiet the school equals the hub (seed %i)", async (seed) => {
  const s = await openPulledSchool([...tables])
  try {
    const simulation = new Simulation(s, seed)
    for (let i = 0; i < STEPS; i++) {
      const roll = simulation.r.below(100)
      if (roll < 40) simulation.local()
      else if (roll < 54) simulation.office()
      else if (roll < 59) simulation.move()
      else if (roll < 63) simulation.officeRotate()
      else if (roll < 68) await simulation.freeze()
      else if (roll < 78) simulation.push()
      else if (roll < 80) simulation.push(false)
      else if (roll < 83) simulation.decide(false)
      else if (roll < 84) simulation.newEpoch()
      else if (roll < 85) await simulation.restart()
      else await simulation.pull()
    }
    await simulation.quiet()
  } finally {
    await s.close()
  }
})
