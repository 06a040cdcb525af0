/**
 * One seed: head office on real Postgres, four schools on real files. The seed decides the tables, every write on every
 * side, and each step of the flows with its fault: requests that never arrive, answers that are lost, batches that come
 * again or too early, pages that break off, processes that end between two steps, slots that are lost, rules that change. Then quiet: everybody syncs, and what
 * stands everywhere is held against what the rules say (expect.ts).
 */
import { mkdtempSync, rmSync } from "node:fs"
import { join } from "node:path"
import { fastFolder } from "../support/fast-folder.ts"
import { makeWorld, type World } from "../support/world.ts"
import { checkAgree, fail, listed, listOf, same, type Side, sorted } from "./agree.ts"
import { type Expected, expected, type Flight, fold } from "./expect.ts"
import { type Batch, type Node, openNode } from "./node.ts"
import { keyOf, readOffice, type Row } from "./office.ts"
import { type Random, randomOf } from "./random.ts"
import { configOf, ddlOf, makeSchema, type SimTable } from "./schema.ts"
import { SCHOOLS, Writes } from "./writes.ts"

const STEPS = 90
/** Rounds of sync within which everything must be quiet. */
const QUIET_ROUNDS = 6

export interface Outcome {
  readonly writes: number
  readonly batches: number
  readonly conflicts: number
  readonly refused: number
  readonly faults: number
}

/** Every write, batch, verdict and applied cut of a seed, in order, without what is random by its nature: times and names of records. */
export type Trace = ReadonlyArray<string>

export interface Prepared {
  readonly run: () => Promise<{ readonly outcome: Outcome; readonly trace: Trace }>
  readonly close: () => Promise<void>
}

export const prepare = async (seed: number): Promise<Prepared> => {
  const random = randomOf(seed)
  const tables = makeSchema(random)
  const world = await makeWorld(tables.map(ddlOf).join("; "), configOf(tables), SCHOOLS)
  const folder = mkdtempSync(join(fastFolder(), "schoolbus-sim-"))
  const nodes = await Promise.all(
    SCHOOLS.map((id, i) => openNode(world, folder, id, `00000000-0000-4000-8000-${String(seed % 1_000_000).padStart(8, "0")}000${i}`)),
  )
  const sides = nodes.map((node) => ({ node, edits: new Map(), applied: new Map(), refused: new Set<string>() }))
  return {
    run: () => new Simulation(world, random, tables, sides).run(),
    close: async () => {
      await Promise.all(nodes.map((node) => node.close()))
      await world.stop()
      rmSync(folder, { recursive: true, force: true })
    },
  }
}

class Simulation {
  readonly #world: World
  readonly #random: Random
  readonly #tables: ReadonlyArray<SimTable>
  readonly #sides: ReadonlyArray<Side>
  readonly #writes: Writes
  #batches = 0
  #conflicts = 0
  #faults = 0
  readonly #trace: Array<string> = []
  /** What head office must hold: its own writes, and what the rules make of the schools'. */
  readonly #model = new Map<string, Map<string, Row>>()

  constructor(world: World, random: Random, tables: ReadonlyArray<SimTable>, sides: ReadonlyArray<Side>) {
    this.#world = world
    this.#random = random
    this.#tables = tables
    this.#sides = sides
    for (const table of tables) this.#model.set(table.name, new Map())
    this.#writes = new Writes(world, random, tables, this.#model, (what, ...values) => this.#note(what, ...values))
  }

  #note(what: string, ...values: ReadonlyArray<unknown>): void {
    this.#trace.push([what, ...values.map((value) => JSON.stringify(value, (_, v) => (typeof v === "bigint" ? `${v}n` : v)))].join(" "))
  }

  async run(): ReturnType<Prepared["run"]> {
    for (let i = 0; i < 12; i++) await this.#writes.office()
    await this.#world.settle()
    await Promise.all(this.#sides.map((side) => this.#pullAll(side)))
    for (let step = 0; step < STEPS; step++) await this.#step()
    this.#note("quiet")
    await this.#quiet()
    await checkAgree(this.#world, this.#tables, this.#sides, this.#model)
    const outcome = {
      writes: this.#writes.count,
      batches: this.#batches,
      conflicts: this.#conflicts,
      refused: this.#sides.reduce((sum, side) => sum + side.refused.size, 0),
      faults: this.#faults,
    }
    this.#note("end", outcome, listed(this.#model))
    return { outcome, trace: this.#trace }
  }

  async #step(): Promise<void> {
    const side = this.#random.pick(this.#sides)
    const what = this.#random.below(100)
    this.#note("step", side.node.id, what)
    if (what < 22) return this.#writes.office()
    if (what < 55) return this.#writes.school(side)
    if (what < 62) return side.node.freeze()
    if (what < 76) return this.#send(side)
    if (what < 92) return this.#pull(side)
    this.#faults++
    if (what < 97) return side.node.reopen()
    if (what < 98) return this.#again(side)
    if (what < 99) return this.#newRules()
    return this.#away()
  }

  /** The hub's stream is away while both sides write, and may find its slot gone. */
  async #away(): Promise<void> {
    await this.#world.halt()
    for (let i = this.#random.below(5); i > 0; i--) {
      if (this.#random.chance(0.5)) await this.#writes.office()
      else await this.#send(this.#random.pick(this.#sides))
    }
    const isLost = this.#random.chance(0.5)
    this.#note("the hub was away", isLost)
    if (isLost) await this.#world.dropSlot()
    await this.#world.restart()
    await this.#world.compared()
  }

  /** Another side wins from now on, whatever is on its way. What is summed stays so. */
  async #newRules(): Promise<void> {
    for (const table of this.#tables) {
      table.strategy = this.#random.pick(["school_wins", "vps_wins"] as const)
      for (const column of table.columns)
        if (column.rule !== "sum") column.rule = this.#random.chance(0.25) ? this.#random.pick(["school_wins", "vps_wins"] as const) : table.strategy
    }
    this.#note("new rules", configOf(this.#tables))
    await this.#world.restart(configOf(this.#tables))
    await this.#world.compared()
  }

  /** The next batch goes up, or one that must be refused because another comes first. Its answer may be lost. */
  async #send(side: Side): Promise<void> {
    await side.node.freeze()
    const batches = await side.node.unsettled()
    const [next] = batches.filter((batch) => !side.applied.has(batch.number))
    if (next === undefined) return this.#again(side)
    const later = batches.find((batch) => batch.number > next.number)
    if (later !== undefined && this.#random.chance(0.3)) {
      this.#faults++
      const refusal = await this.#apply(side.node, later).catch((cause: { _tag?: string }) => cause._tag)
      if (refusal !== "BatchGap") fail("a batch that came too early was not refused", refusal)
    }
    if (this.#random.chance(0.15)) {
      this.#faults++
      return
    }
    await this.#first(side, next)
    // A lost answer is asked for again, with the same bytes.
    if (this.#random.chance(0.3)) await this.#again(side)
  }

  #apply(node: Node, batch: Batch) {
    const { number, hash, text } = batch
    return this.#world.run(this.#world.apply.batch({ school: node.id, incarnation: node.incarnation, number, hash, text, now: Date.now() }))
  }

  /** A batch that has its verdicts comes once more: the same answer, and nothing is written. */
  async #again(side: Side): Promise<void> {
    if (side.applied.size === 0) return
    this.#faults++
    const { batch, answer } = this.#random.pick([...side.applied.values()])
    const before = await readOffice(this.#world, this.#tables)
    const verdicts = await this.#apply(side.node, batch)
    this.#note("again", side.node.id, batch.number)
    if (JSON.stringify(verdicts) !== answer) fail("a replayed batch was answered otherwise", answer, verdicts)
    if (!same(listed(before), listed(await readOffice(this.#world, this.#tables)))) fail("a replayed batch wrote something")
  }

  #flight(side: Side): Flight {
    return new Set([...side.applied.values()].flatMap(({ summed }) => summed))
  }

  /** The first time that a batch is applied: held against the rules, row by row. */
  async #first(side: Side, batch: Batch): Promise<void> {
    const { node } = side
    const edits = batch.ids.map(
      (id) => side.edits.get(id) ?? fail(`batch ${batch.number} of ${node.id} carries write ${id}, which is unknown or was sent before`),
    )
    const changes = fold(edits)
    const before = await readOffice(this.#world, this.#tables)
    const flight = this.#flight(side)
    const verdicts = await this.#apply(node, batch)
    this.#batches++
    const after = await readOffice(this.#world, this.#tables)
    this.#note(
      "batch",
      node.id,
      batch.number,
      batch.ids,
      verdicts.exceptions.map(({ id, verdict, reason }) => [id, verdict, reason]),
      listed(after),
    )
    if (verdicts.changes !== batch.ids.length) fail("a batch has another number of verdicts than changes", verdicts, batch.ids)
    const verdictOf = new Map(verdicts.exceptions.map((exception) => [exception.id, exception.verdict]))

    const wanted = new Map<string, Map<string, Row>>([...before].map(([name, rows]) => [name, new Map(rows)]))
    const conflicts: Array<string> = []
    const summed: Array<string> = []
    // In the order in which rows were first touched, each against what the ones before it made.
    for (const [i, change] of changes.entries()) {
      const rows = wanted.get(change.table.name) as Map<string, Row>
      // Parents go first: one that head office deleted and that the batch brings back later on, whose own turn shows whether rightly so.
      const comesBack = (parent: string, key: string): boolean =>
        changes.slice(i + 1).some((other) => other.table.name === parent && other.key === key && other.op !== "delete") &&
        after.get(parent)?.get(key)?.["school_id"] === node.id
      const there = before.get(change.table.name)?.get(change.key)
      const { unique, parent } = change.table
      const rules: Expected = expected(change, {
        school: node.id,
        before: there,
        flight,
        isTaken: (value) => unique !== null && [...rows].some(([key, row]) => key !== change.key && row[unique] === value),
        hasParent: (key) =>
          parent !== null &&
          ((wanted.get(parent.name)?.get(keyOf([key]))?.["school_id"] ?? null) === node.id || comesBack(parent.name, keyOf([key]))),
      })
      const result = after.get(change.table.name)?.get(change.key) ?? null
      const isRefused = change.ids.some((id) => verdictOf.get(id) === "quarantined")
      const id = `${change.table.name} ${change.key}`
      // A later edit of a row that waits is joined to it: it waits too, or both are written as the school has them now.
      if (side.refused.has(id)) {
        const row = isRefused || change.op === "none" ? (there ?? null) : change.mine
        if (!same(sorted(result), sorted(row)))
          fail("a row that waited is neither as it was nor as the school has it", change, { there, result }, verdicts)
        if (row === null) rows.delete(change.key)
        else rows.set(change.key, row)
        if (!isRefused) side.refused.delete(id)
        continue
      }
      if (isRefused !== rules.refused) fail(`${isRefused ? "refused" : "taken"} against the rules`, change, there, rules, verdicts, result)
      if (isRefused) side.refused.add(id)
      const row = isRefused ? (there ?? null) : rules.row === "either" ? result : rules.row
      if (row === null) rows.delete(change.key)
      else rows.set(change.key, row)
      if (!isRefused && rules.row !== "either") for (const column of rules.conflicts) conflicts.push(`${change.table.name} ${change.key} ${column}`)
      for (const { name, rule } of change.table.columns)
        if (rule === "sum" && (change.mine?.[name] ?? null) !== (result?.[name] ?? null)) summed.push(`${id} ${name}`)
      if (!same(sorted(result), sorted(row)))
        fail("a row is not what the rules make of it", change, { there, row, result, conflicts: rules.conflicts }, verdicts)
    }
    // What waited for a row of another table goes on by itself once that is there.
    for (const { refused } of this.#sides) {
      for (const id of refused) {
        const at = id.indexOf(" ")
        const [name, key] = [id.slice(0, at), id.slice(at + 1)]
        const row = after.get(name)?.get(key)
        if (row === undefined) wanted.get(name)?.delete(key)
        else wanted.get(name)?.set(key, row)
      }
    }
    if (!same(listed(wanted), listed(after))) fail("a batch wrote a row that is not in it", listed(wanted), listed(after))
    const recorded = (
      await this.#world.sql<Array<{ id: string }>>`
        SELECT replace(table_name, 'public.', '') || ' ' || row_key || ' ' || coalesce(column_name, '') AS id FROM schoolbus.conflicts
         WHERE incarnation = ${node.incarnation} AND batch = ${batch.number} AND kind <> 'unique' AND winner <> 'merged'`
    ).map(({ id }) => id.replace(/(\d+)\](?= )/, (_, n) => `"${n}"]`))
    const open = [...recorded].filter((id) => !conflicts.includes(id))
    const isOpen = (id: string) => changes.some((change) => id.startsWith(`${change.table.name} ${change.key} `) && change.op === "delete")
    if (conflicts.some((id) => !recorded.includes(id)) || open.some((id) => !isOpen(id)))
      fail("the recorded conflicts are not the true ones", { conflicts, recorded }, changes, [...flight])
    this.#note("conflicts", recorded.toSorted())
    this.#conflicts += recorded.length
    for (const [name, rows] of wanted) this.#model.set(name, rows)
    for (const id of batch.ids) side.edits.delete(id)
    side.applied.set(batch.number, { batch, answer: JSON.stringify(verdicts), summed })
  }

  /**
   * Head office's changes come down, whole or only the first lines of a page. An applied cut freezes what is open. Whether there
   * is one depends on which transactions fell together in the feed, where a row that came and went leaves nothing: so that the
   * seed alone says which writes are one batch, they are frozen in any case.
   */
  async #pull(side: Side): Promise<void> {
    await this.#world.settle()
    if (this.#random.chance(0.25)) {
      this.#faults++
      await side.node.pull(1 + this.#random.below(4))
      if (this.#random.chance(0.3)) await side.node.reopen()
    } else await this.#pullAll(side)
    await side.node.freeze()
    await this.#forgetSettled(side)
  }

  async #pullAll({ node }: Side): Promise<void> {
    while (!(await node.pull(null)));
  }

  /** A batch whose ledger row has come down is over. */
  async #forgetSettled(side: Side): Promise<void> {
    const { node } = side
    this.#note(
      "pulled",
      node.id,
      this.#tables.map((table) => listOf(node.rows(table))),
    )
    const left = new Set((await node.unsettled()).map((batch) => batch.number))
    for (const number of side.applied.keys()) if (!left.has(number)) side.applied.delete(number)
  }

  async #quiet(): Promise<void> {
    for (let round = 0; round < QUIET_ROUNDS; round++) {
      let sent = 0
      for (const side of this.#sides) {
        await side.node.freeze()
        for (const batch of await side.node.unsettled()) {
          if (side.applied.has(batch.number)) continue
          await this.#first(side, batch)
          sent++
        }
      }
      await this.#world.settle()
      await Promise.all(this.#sides.map((side) => this.#pullAll(side)))
      for (const side of this.#sides) await this.#forgetSettled(side)
      if (sent === 0) return
    }
    fail(`after ${QUIET_ROUNDS} rounds without a write there are still batches to send`)
  }
}
