/**
 * Random local edits, edits at the hub, pushes, verdicts, decisions and pulls of every shape, in any order; the seed is in the
 * test's name. `SIM_SEEDS=500` runs more, `SIM_SEED=17` runs one.
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import { expect, test } from "vitest"
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

const pupils = table(
  "pupils",
  [column("id"), column("school_id"), column("name", "text", { notNull: true }), column("username"), column("phone"), column("points", "int")],
  {
    unique: [["username"]],
  },
)
const columns = ["name", "username", "phone", "points"] as const

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
  private readonly log: Array<string> = []
  private value = 0
  private pushed = 0

  constructor(s: PulledSchool, seed: number) {
    this.s = s
    this.r = random(seed)
  }

  private key() {
    return `k${this.r.below(6)}`
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
    const set = columns.filter(() => this.r.chance(0.4))
    const sql = this.r.pick<() => readonly [sql: string, args: ReadonlyArray<unknown>]>([
      () => {
        const { id, school_id, name, username, phone, points } = this.row(this.key())
        return ["INSERT INTO pupils VALUES (?, ?, ?, ?, ?, ?)", [id, school_id, name, username, phone, BigInt(Number(points))]] as const
      },
      () => {
        const values = set.map((col) => this.some(col))
        const assign = set.length === 0 ? "phone = phone" : set.map((col) => `${col} = ?`).join(", ")
        return [`UPDATE pupils SET ${assign} WHERE id = ?`, [...values.map((v) => (typeof v === "number" ? BigInt(v) : v)), this.key()]] as const
      },
      () => ["DELETE FROM pupils WHERE id = ?", [this.key()]] as const,
      () => ["UPDATE pupils SET id = ? WHERE id = ?", [this.key(), this.key()]] as const,
    ])()
    try {
      this.s.program(...sql)
      this.log.push(`local ${JSON.stringify(sql, (_, v) => (typeof v === "bigint" ? Number(v) : (v as unknown)))}`)
    } catch (error) {
      if (!/constraint/i.test(String(error))) throw error
    }
  }

  private isFree(row: Values, except: ReadonlyArray<Wire>) {
    return (
      row["username"] === null ||
      this.s.hub.rows("pupils").every((other) => except.includes(other["id"] ?? null) || other["username"] !== row["username"])
    )
  }

  office() {
    const { hub } = this.s
    const id = this.key()
    const present = hub.row("pupils", id)
    if (present !== null && this.r.chance(0.25)) {
      hub.remove("pupils", id)
      this.log.push(`office delete ${id}`)
      return
    }
    const fresh = this.row(id)
    const row =
      present === null
        ? fresh
        : ({ ...present, ...Object.fromEntries(columns.filter(() => this.r.chance(0.4)).map((col) => [col, fresh[col]])) } as Values)
    if (!this.isFree(row, [id])) return
    hub.put("pupils", row)
    this.log.push(`office ${JSON.stringify(row)}`)
  }

  /** Two rows exchange their usernames in one transaction. */
  officeSwap() {
    const { hub } = this.s
    const rows = hub.rows("pupils")
    if (rows.length < 2) return
    const [a, b] = [this.r.pick(rows), this.r.pick(rows)]
    hub.put("pupils", { ...a, username: b["username"] ?? null })
    if (a["id"] !== b["id"]) hub.put("pupils", { ...b, username: a["username"] ?? null })
    this.log.push(`office swap ${a["id"]} ${b["id"]}`)
  }

  private held(): ReadonlySet<string> {
    const open = this.s.hub.rows("schoolbus_quarantine").filter((row) => row["status"] === "open")
    return new Set(open.flatMap((row) => keysOf(JSON.parse(String(row["change"])) as Change)))
  }

  /** vps_wins, column by column; what cannot be written, or hangs on such a change, is quarantined. */
  private judge(change: Change): Exception | null {
    const { hub } = this.s
    const quarantined = (): Exception => {
      const record = `q-${change.id}`
      hub.put("schoolbus_quarantine", { id: record, school: SCHOOL, change_id: String(change.id), change: JSON.stringify(change), status: "open" })
      return { id: change.id, verdict: "quarantined", record, hold: true }
    }
    const lost: Exception = { id: change.id, verdict: "conflict" }
    const held = this.held()
    if (keysOf(change).some((key) => held.has(key)) || this.r.chance(0.06)) return quarantined()
    const id = String(change.key[0])
    const theirs = hub.row("pupils", id)
    if (change.op === "insert") {
      if (theirs !== null) return lost
      if (!this.isFree(change.mine as Values, [])) return quarantined()
      hub.put("pupils", change.mine as Values)
      return null
    }
    if (theirs === null) return change.op === "delete" ? { id: change.id, verdict: "superseded" } : lost
    if (change.op === "delete") {
      if (columns.some((col) => theirs[col] !== change.base[col])) return lost
      hub.remove("pupils", id)
      return null
    }
    const set = Object.fromEntries(Object.entries(change.mine as Values).filter(([col]) => theirs[col] === change.base[col]))
    const conflicts = Object.entries(change.mine as Values).filter(
      ([col, mine]) => theirs[col] !== change.base[col] && theirs[col] !== mine && col !== "id",
    )
    const newId = change.newKey === undefined ? id : String(change.newKey[0])
    if (newId !== id && hub.row("pupils", newId) !== null) return quarantined()
    const after = { ...theirs, ...set, id: newId } as Values
    if (!this.isFree(after, [id, newId])) return quarantined()
    if (newId !== id) hub.remove("pupils", id)
    if (newId !== id || Object.keys(set).length > 0) hub.put("pupils", after)
    return conflicts.length > 0 ? lost : null
  }

  async freeze() {
    await this.s.freezeAll()
  }

  /** The next batch arrives at the hub. Its answer does not matter here: only the ledger row ends a shield. */
  push() {
    const batch = this.s.unsettled().find(({ number }) => number > this.pushed)
    if (batch === undefined) return false
    const exceptions = batch.changes.flatMap((change) => this.judge(change) ?? [])
    this.s.hub.ledger(batch.number, batch.hash, exceptions)
    this.pushed = batch.number
    this.log.push(`push ${batch.number} ${JSON.stringify(exceptions)}`)
    return true
  }

  decide(all: boolean) {
    for (const row of this.s.hub.rows("schoolbus_quarantine")) {
      if (row["status"] !== "open" || (!all && this.r.chance(0.5))) continue
      this.s.hub.put("schoolbus_quarantine", { ...row, status: "discarded" })
      this.log.push(`discard ${row["id"]}`)
    }
  }

  newEpoch() {
    const { hub } = this.s
    hub.epoch = `e${this.value}-${hub.seq}`
    for (const [id, entry] of hub.entries) if (entry.row === null) hub.entries.delete(id)
    this.log.push("new epoch")
  }

  private rows() {
    return new Map(this.s.read("SELECT id, name, username, phone, points FROM pupils").map((row) => [String(row[0]), row]))
  }

  /** A pull of any shape; afterwards nothing that still waits may have changed. */
  async pull(last = false) {
    await this.s.freezeAll()
    const before = this.rows()
    const heldBefore = this.holds()
    const options: PageOptions = this.r.chance(0.5) ? {} : { lineRows: 1 + this.r.below(3), pageLines: 1 + this.r.below(3) }
    for (let applied = false; !applied; ) {
      const { deliver, hub } = this.s
      const { header, lines, trailer } = hub.page(await this.s.run(deliver.cursor), await this.s.run(deliver.staged), options)
      const isCut = !last && this.r.chance(0.2)
      const exit = await Effect.runPromiseExit(
        deliver.page(header, isCut ? lines.slice(0, this.r.below(lines.length + 1)) : lines, isCut ? null : trailer),
      )
      if (Exit.isFailure(exit)) throw new Error(String(exit.cause))
      applied = exit.value.applied
      if (!last && this.r.chance(0.1)) break
    }
    this.log.push(`pull ${JSON.stringify(options)}`)
    this.check(before, heldBefore)
  }

  private holds() {
    return new Set(this.s.read("SELECT key || ' ' || record FROM schoolbus_hold WHERE col = ''").map(([hold]) => String(hold)))
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
            key,
            change.op === "update" && change.newKey === undefined ? Object.keys(change.mine) : Object.keys(position),
            `the ${change.op} in batch ${batch.number}`,
          )
        }
      }
    }
    for (const hold of this.holds()) {
      if (heldBefore.has(hold)) same(hold.slice(1, hold.indexOf("'", 1)), Object.keys(position), "the held row")
    }
  }

  async quiet() {
    for (let i = 0; i < 3; i++) {
      await this.freeze()
      while (this.push());
      this.decide(true)
      await this.pull(true)
    }
    const rows = [...this.rows().values()].map((row) => row.map((v) => (typeof v === "bigint" ? Number(v) : v))).sort()
    const hub = this.s.hub
      .rows("pupils")
      .map((row) => [row["id"], row["name"], row["username"], row["phone"], row["points"]])
      .sort()
    const left = ["changes", "schoolbus_behind", "schoolbus_hold", "schoolbus_stage"].map((name) => [
      name,
      Number(this.s.one(`SELECT count(*) FROM ${name}`)),
    ])
    expect({ rows, left }, this.log.join("\n")).toEqual({ rows: hub, left: left.map(([name]) => [name, 0]) })
  }
}

const keysOf = (change: Change): ReadonlyArray<string> =>
  [change.key, ...(change.newKey === undefined ? [] : [change.newKey])].map((key) => localKey(pupils, key).slice(1, -1))

test.each(SEEDS)("no own edit is undone before its verdict, and once quiet the school equals the hub (seed %i)", async (seed) => {
  const s = await openPulledSchool([pupils])
  try {
    const simulation = new Simulation(s, seed)
    for (let i = 0; i < STEPS; i++) {
      const roll = simulation.r.below(100)
      if (roll < 40) simulation.local()
      else if (roll < 58) simulation.office()
      else if (roll < 62) simulation.officeSwap()
      else if (roll < 68) await simulation.freeze()
      else if (roll < 80) simulation.push()
      else if (roll < 84) simulation.decide(false)
      else if (roll < 85) simulation.newEpoch()
      else await simulation.pull()
    }
    await simulation.quiet()
  } finally {
    await s.close()
  }
})
