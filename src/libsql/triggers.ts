/**
 * Which of our triggers a file should have, has, and lacks. They are compared by text, so one that a program's migration
 * dropped or rewrote is noticed. Ours are the newest of their table: SQLite fires the newest first, so a write is captured
 * before a program's own trigger writes on top of it.
 */
import * as Effect from "effect/Effect"
import { type Manifest, sameName, type Table } from "../model/table.ts"
import { captureTriggers, streamTriggers, TRIGGER_ENDS, type Trigger, triggerName } from "./capture.ts"
import type { LibsqlError, Tx } from "./client.ts"
import { readUnfit } from "./unfit.ts"
import { readUniques } from "./uniques.ts"

interface Present {
  readonly age: number
  readonly name: string
  readonly local: string
  readonly sql: string
}

/** Rows that only the hub writes need no capture; all others do, also where a school may not write: the hub then says so. */
const isCaptured = (table: Table): boolean => !(table.system && table.direction === "down")

export interface TriggerState {
  /** All that the file should have, by table. */
  readonly wanted: ReadonlyArray<Trigger>
  /** Wanted ones that are missing, altered, or older than a program's trigger of the same table. */
  readonly missing: ReadonlyArray<Trigger>
  /** Numbers of tables where a program's trigger is newer than our sound ones: it fired first, and what it wrote was captured first. */
  readonly late: ReadonlyArray<number>
  /** Names of ours that nothing asks for any more. */
  readonly leftOver: ReadonlyArray<string>
  /** The capture triggers among the wanted ones, and the unique indexes they know of, as JSON. */
  readonly captured: ReadonlyArray<{ readonly tbl: number; readonly triggers: ReadonlyArray<Trigger>; readonly uniques: string }>
}

/** Tables that do not fit have none. Tables that are not in the file are left alone: a program may be in the middle of building them anew. */
export const readTriggers = (tx: Tx, manifest: Manifest, streams: ReadonlyArray<string>): Effect.Effect<TriggerState, LibsqlError> =>
  Effect.gen(function* () {
    const ids = new Map((yield* tx.all<{ id: number; name: string }>("SELECT id, name FROM schoolbus_tables")).map(({ id, name }) => [name, id]))
    const locals = yield* tx.all<{ local: string }>("SELECT local FROM schoolbus_tables")
    const inFile = new Set((yield* tx.all<{ name: string }>("SELECT name FROM sqlite_master WHERE type = 'table'")).map(({ name }) => sameName(name)))
    const present = yield* tx.all<Present>("SELECT rowid AS age, name, tbl_name AS local, sql FROM sqlite_master WHERE type = 'trigger'")
    const uniques = yield* readUniques(tx)
    const columns = new Map(
      (yield* tx.all<{ local: string; columns: string }>(
        `SELECT m.name AS local, (SELECT json_group_array(x.name) FROM pragma_table_xinfo(m.name) x) AS columns
           FROM schoolbus_tables t JOIN sqlite_master m ON m.type = 'table' AND m.name = t.local COLLATE NOCASE`,
      )).map((row) => [sameName(row.local), JSON.parse(row.columns) as ReadonlyArray<string>]),
    )
    const names = new Set(locals.flatMap(({ local }) => TRIGGER_ENDS.map((end) => triggerName(local, end))))
    const newest = new Map<string, number>()
    for (const { age, name, local } of present) {
      if (!name.startsWith("schoolbus_")) newest.set(sameName(local), Math.max(age, newest.get(sameName(local)) ?? 0))
    }
    const byName = new Map(present.map((trigger) => [trigger.name, trigger]))
    const wanted: Array<Trigger> = []
    const captured: Array<TriggerState["captured"][number]> = []
    const missing: Array<Trigger> = []
    const late = new Set<number>()
    const unfit = new Set((yield* readUnfit(tx)).map(({ name }) => name))
    for (const table of manifest.tables) {
      const id = ids.get(table.name)
      if (id === undefined || unfit.has(table.name) || !inFile.has(sameName(table.local))) continue
      const unique = uniques.get(sameName(table.local)) ?? []
      const capture = isCaptured(table) ? captureTriggers(table, id, unique, columns.get(sameName(table.local)) ?? []) : []
      if (isCaptured(table)) captured.push({ tbl: id, triggers: capture, uniques: JSON.stringify(unique) })
      const triggers = [...capture, ...(streams.includes(table.local) ? streamTriggers(table) : [])]
      wanted.push(...triggers)
      for (const trigger of triggers) {
        const found = byName.get(trigger.name)
        const isSame = found?.sql === trigger.sql
        const isSound = isSame && found.age > (newest.get(sameName(table.local)) ?? 0)
        if (isSame && !isSound && isCaptured(table)) late.add(id)
        if (!isSound) missing.push(trigger)
      }
    }
    const keep = new Set(wanted.map(({ name }) => name))
    return { wanted, missing, captured, late: [...late], leftOver: present.flatMap(({ name }) => (names.has(name) && !keep.has(name) ? [name] : [])) }
  })
