/** Who should be on a terminal, and the difference to what it has confirmed (pure). */
import type { Manifest } from "../model/table.ts"
import { normalPin } from "./cdata.ts"
import { cutName } from "./command.ts"

export interface Person {
  /** `"public.students"` */
  readonly table: string
  readonly id: string
  readonly name: string
  readonly card: string | null
  /** A pin that the person's own row names. */
  readonly pin: string | null
  readonly group: string | null
}

/** One pin as its newest command left it. */
export interface Held {
  readonly pin: string
  readonly table: string
  readonly id: string
  readonly name: string
  readonly card: string | null
  readonly status: string
  /** Its newest command removes it. */
  readonly removing: boolean
  /** Confirmed once, but the terminal's own list does not show it any more. */
  readonly missing: boolean
}

export type RosterStep = { readonly kind: "add"; readonly person: Person; readonly pin: string } | { readonly kind: "remove"; readonly held: Held }

export interface Roster {
  readonly people: ReadonlyArray<Person>
  readonly held: ReadonlyArray<Held>
  /** Every pin ever given, with its owner; of a person with several, the last one counts. */
  readonly taken: ReadonlyMap<string, { readonly table: string; readonly id: string }>
  /** Pins that the terminal reports for users of its own. */
  readonly foreign: ReadonlySet<string>
  /** Send again: nothing; what failed; everyone. */
  readonly again: "nothing" | "failed" | "everyone"
}

const who = (of: { readonly table: string; readonly id: string }): string => `${of.table}\0${of.id}`

/** A pin of its own choice: what its row names, else a numeric id. */
const ownPin = (person: Person): string | null => {
  const wanted = person.pin ?? person.id
  const pin = /^\d{1,9}$/.test(wanted) ? normalPin(wanted) : null
  return pin === "0" ? null : pin
}

/** A pin for each person. It never goes to anybody else, also when its owner has left: old punches keep their owner. */
const pinsFor = (roster: Roster): ReadonlyMap<string, string> => {
  const owners = new Map([...roster.taken].map(([pin, owner]) => [pin, who(owner)]))
  const pinByPerson = new Map([...roster.taken].map(([pin, owner]) => [who(owner), pin]))
  // Pins that rows name come first, so that a number given to somebody else does not stand in their way.
  const ordered = [...roster.people.filter((person) => person.pin !== null), ...roster.people.filter((person) => person.pin === null)]
  const waiting: Array<Person> = []
  for (const person of ordered) {
    const own = ownPin(person)
    const owner = own === null ? undefined : owners.get(own)
    if (own !== null && (person.pin !== null || !pinByPerson.has(who(person))) && (owner === undefined || owner === who(person))) {
      owners.set(own, who(person))
      pinByPerson.set(who(person), own)
    } else if (!pinByPerson.has(who(person))) waiting.push(person)
  }
  let next = 1
  for (const pin of [...owners.keys(), ...roster.foreign]) if (/^\d{1,8}$/.test(pin)) next = Math.max(next, Number(pin) + 1)
  for (const person of waiting) pinByPerson.set(who(person), String(next++))
  return pinByPerson
}

/** Steps that bring a terminal from what it holds, or has been told, to what it should hold. */
export const rosterSteps = (roster: Roster): ReadonlyArray<RosterStep> => {
  const pins = pinsFor(roster)
  const heldByPin = new Map(roster.held.map((entry) => [entry.pin, entry]))
  const wanted = new Set<string>()
  const adds: Array<RosterStep> = []
  for (const person of roster.people) {
    const pin = pins.get(who(person)) ?? ""
    wanted.add(pin)
    const held = heldByPin.get(pin)
    const isSame = held !== undefined && !held.removing && !held.missing && held.name === cutName(person.name) && held.card === person.card
    const isAgain = roster.again === "everyone" || (roster.again === "failed" && held?.status === "failed")
    if (!isSame || isAgain) adds.push({ kind: "add", person, pin })
  }
  const removes = roster.held.flatMap((held): ReadonlyArray<RosterStep> => {
    if (wanted.has(held.pin) || held.status === "deleted") return []
    const isAgain = held.removing && held.status === "failed" && roster.again !== "nothing"
    return !held.removing || isAgain ? [{ kind: "remove", held }] : []
  })
  // Room is made first: the memory of a terminal is small.
  return [...removes, ...adds]
}

const ident = (name: string): string => `"${name.replaceAll('"', '""')}"`

/**
 * Triggers that mark a table of people in the writing transaction, whoever writes, deliver included. `INSERT OR IGNORE`
 * would not do: inside a trigger the writing statement's own conflict clause counts, and could fail a program's write.
 */
export const rosterTriggers = (manifest: Manifest): ReadonlyArray<{ readonly name: string; readonly sql: string }> =>
  Object.entries(manifest.devices?.people ?? {}).flatMap(([name, rule]) => {
    const table = manifest.tables.find((one) => one.name === name)
    if (table === undefined) return []
    const columns = [rule.id, rule.name, rule.card, rule.pin, rule.active, rule.group].flatMap((column) =>
      column === undefined ? [] : [ident(column)],
    )
    const local = `'${table.local.replaceAll("'", "''")}'`
    const body = `INSERT INTO schoolbus_roster_dirty (tbl, taken) SELECT ${local}, 0 WHERE NOT EXISTS (SELECT 1 FROM schoolbus_roster_dirty WHERE tbl = ${local} AND taken = 0)`
    return [
      ["i", "INSERT"],
      ["u", `UPDATE OF ${[...new Set(columns)].join(", ")}`],
      ["d", "DELETE"],
    ].map(([suffix, event]) => {
      const trigger = `schoolbus_roster_${table.local}_${suffix}`
      return { name: trigger, sql: `CREATE TRIGGER ${ident(trigger)} AFTER ${event} ON ${ident(table.local)} BEGIN ${body}; END` }
    })
  })
