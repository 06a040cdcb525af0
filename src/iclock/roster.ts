/** Who should be on a terminal, and the difference to what it has confirmed (pure). */
import type { Manifest } from "../model/table.ts"
import { normalCard, normalPin } from "./cdata.ts"
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
  /** null: given in an earlier life of the school's file; what became of it is not known here. */
  readonly name: string | null
  readonly card: string | null
  /** `unknown`: as above. */
  readonly status: string
  /** Its newest command removes it. */
  readonly removing: boolean
  /** The terminal's own list contradicts what was confirmed: the person is missing, or removed but still there, or differs. */
  readonly differs: boolean
  /** Nothing about it was ever sent to the terminal. */
  readonly unsent: boolean
}

/** A user of the terminal's own, entered there by hand or by whoever used it before. */
export interface ForeignUser {
  readonly pin: string
  readonly card: string | null
  /** May open the terminal's menu: without them anybody could. */
  readonly privileged: boolean
}

export type RosterStep =
  | { readonly kind: "add"; readonly person: Person; readonly pin: string }
  | { readonly kind: "remove"; readonly held: Held }
  /** A pin that was never sent is given back. */
  | { readonly kind: "free"; readonly pin: string }
  /** A user of the terminal's own is removed. */
  | { readonly kind: "expel"; readonly pin: string }

export type ForeignPolicy = "adopt" | "keep" | "remove"

export interface Roster {
  readonly people: ReadonlyArray<Person>
  readonly held: ReadonlyArray<Held>
  /** Every pin ever given, with its owner, of this terminal (`here`) and of others; of a person with several, the last one counts. */
  readonly taken: ReadonlyMap<string, { readonly table: string; readonly id: string; readonly here: boolean }>
  readonly foreign: ReadonlyArray<ForeignUser>
  /** Pins of punches that nobody is known for. */
  readonly unknown: ReadonlySet<string>
  readonly policy: ForeignPolicy
  /** The terminal has shown that its pins may have letters: most read digits only. */
  readonly letters: boolean
  /** Send again: nothing; what failed; everyone. */
  readonly again: "nothing" | "failed" | "everyone"
}

const who = (of: { readonly table: string; readonly id: string }): string => `${of.table}\0${of.id}`

export const hasLetters = (pin: string): boolean => /^[A-Za-z0-9]*[A-Za-z][A-Za-z0-9]*$/.test(pin)
/** What fits into the pin of a terminal that reads letters. */
const MAX_LETTERS = 24

/** A pin of its own choice: what its row names, else a numeric id. */
const ownPin = (person: Person, letters: boolean): string | null => {
  if (letters && person.pin !== null && person.pin.length <= MAX_LETTERS && hasLetters(person.pin)) return person.pin
  const wanted = person.pin ?? person.id
  const pin = /^\d{1,9}$/.test(wanted) ? normalPin(wanted) : null
  return pin === "0" ? null : pin
}

/** Why somebody has another pin than their row names; null: they have that one, or it names none. */
export const pinFault = (named: string | null, pin: string): string | null => {
  if (named === null || normalPin(named) === pin) return null
  const shown = named.slice(0, MAX_LETTERS)
  return hasLetters(named)
    ? `the pin ${shown} has letters, which this terminal is not known to read; it is ${pin} there`
    : `the pin ${shown} is somebody else's, or no number of up to 9 digits; it is ${pin} there`
}

/** What may keep or lose its pin before anything was sent: the terminal turned out to have used the number already. */
const isFree = (held: Held, people: ReadonlyMap<string, Person>, blocked: ReadonlySet<string>, letters: boolean): boolean => {
  const person = people.get(who(held))
  return held.unsent && blocked.has(held.pin) && (person?.pin == null || ownPin(person, letters) !== held.pin)
}

/** People whose card one user of the terminal's own carries, and nobody else: the same person. */
const adopted = (roster: Roster): ReadonlyMap<string, string> => {
  const cards = new Map<string, ReadonlyArray<string>>()
  if (roster.policy === "keep") return new Map()
  for (const user of roster.foreign) if (user.card !== null) cards.set(user.card, [...(cards.get(user.card) ?? []), user.pin])
  const owners = new Map<string, ReadonlyArray<Person>>()
  for (const person of roster.people) {
    const card = normalCard(person.card ?? "")
    if (card !== null && cards.has(card)) owners.set(card, [...(owners.get(card) ?? []), person])
  }
  return new Map(
    [...owners].flatMap(([card, people]) => {
      const [pin, ...pins] = cards.get(card) ?? []
      const [person, ...persons] = people
      return pin === undefined || person === undefined || pins.length + persons.length > 0 ? [] : [[who(person), pin] as const]
    }),
  )
}

/** A pin for each person. It never goes to anybody else, also when its owner has left: old punches keep their owner. */
const pinsFor = (roster: Roster, freed: ReadonlySet<string>): ReadonlyMap<string, string> => {
  const foreign = new Set(roster.foreign.map((user) => user.pin))
  const sent = new Set(roster.held.flatMap((held) => (held.unsent ? [] : [held.pin])))
  const taken = [...roster.taken].filter(([pin, owner]) => !(owner.here && freed.has(pin)))
  const owners = new Map(taken.map(([pin, owner]) => [pin, who(owner)]))
  // A number that a person has elsewhere is no use where the terminal has somebody of its own under it.
  const pinByPerson = new Map(
    taken.flatMap(([pin, owner]) =>
      owner.here || !(foreign.has(pin) || roster.unknown.has(pin) || (hasLetters(pin) && !roster.letters)) ? [[who(owner), pin]] : [],
    ),
  )
  for (const [person, pin] of adopted(roster)) {
    if (owners.has(pin) || sent.has(pinByPerson.get(person) ?? "")) continue
    owners.set(pin, person)
    pinByPerson.set(person, pin)
  }
  // Pins that rows name come first, so that a number given to somebody else does not stand in their way.
  const ordered = [...roster.people.filter((person) => person.pin !== null), ...roster.people.filter((person) => person.pin === null)]
  const waiting: Array<Person> = []
  for (const person of ordered) {
    const own = ownPin(person, roster.letters)
    const owner = own === null ? undefined : owners.get(own)
    const isOpen = own !== null && (owner === undefined || owner === who(person)) && (person.pin !== null || !foreign.has(own))
    if (isOpen && (person.pin !== null || !pinByPerson.has(who(person)))) {
      owners.set(own, who(person))
      pinByPerson.set(who(person), own)
    } else if (!pinByPerson.has(who(person))) waiting.push(person)
  }
  let next = 1
  for (const pin of [...owners.keys(), ...foreign, ...roster.unknown]) if (/^\d{1,8}$/.test(pin)) next = Math.max(next, Number(pin) + 1)
  for (const person of waiting) pinByPerson.set(who(person), String(next++))
  return pinByPerson
}

/** Steps that bring a terminal from what it holds, or has been told, to what it should hold. */
export const rosterSteps = (roster: Roster): ReadonlyArray<RosterStep> => {
  const people = new Map(roster.people.map((person) => [who(person), person]))
  const blocked = new Set([...roster.foreign.map((user) => user.pin), ...roster.unknown])
  const freed = new Set(roster.held.filter((held) => isFree(held, people, blocked, roster.letters)).map((held) => held.pin))
  const pins = pinsFor(roster, freed)
  const heldByPin = new Map(roster.held.filter((held) => !freed.has(held.pin)).map((entry) => [entry.pin, entry]))
  const wanted = new Set<string>()
  const adds: Array<RosterStep> = []
  for (const person of roster.people) {
    const pin = pins.get(who(person)) ?? ""
    wanted.add(pin)
    const held = heldByPin.get(pin)
    const isSame = held !== undefined && !held.removing && !held.differs && held.name === cutName(person.name) && held.card === person.card
    const isAgain = roster.again === "everyone" || (roster.again === "failed" && held?.status === "failed")
    if (!isSame || isAgain) adds.push({ kind: "add", person, pin })
  }
  const removes = [...heldByPin.values()].flatMap((held): ReadonlyArray<RosterStep> => {
    if (wanted.has(held.pin)) return []
    if (held.status === "deleted") return held.differs ? [{ kind: "remove", held }] : []
    const isAgain = held.removing && held.status === "failed" && roster.again !== "nothing"
    return !held.removing || isAgain ? [{ kind: "remove", held }] : []
  })
  const frees = [...freed].map((pin): RosterStep => ({ kind: "free", pin }))
  const expels =
    roster.policy === "remove"
      ? roster.foreign.flatMap(
          (user): ReadonlyArray<RosterStep> => (user.privileged || wanted.has(user.pin) ? [] : [{ kind: "expel", pin: user.pin }]),
        )
      : []
  // Room is made first: the memory of a terminal is small.
  return [...frees, ...removes, ...expels, ...adds]
}

const ident = (name: string): string => `"${name.replaceAll('"', '""')}"`

/** Columns of the sync's own tables that head office may have written otherwise than this node did. */
const WATCHED: Readonly<Record<string, ReadonlyArray<string>>> = {
  "schoolbus.devices": ["status", "zone", "name", "pinned_address"],
  "schoolbus.device_user_mappings": ["person_table", "person_id", "to_at"],
}

/** Rows of terminals that come from head office with news: a school's own node knows what it wrote itself. */
const deviceTriggers = (manifest: Manifest): ReadonlyArray<{ readonly name: string; readonly sql: string }> =>
  manifest.tables.flatMap(({ name: table, local }) => {
    const columns = WATCHED[table]
    if (columns === undefined) return []
    const isNews = columns.map((column) => `OLD.${ident(column)} IS NOT NEW.${ident(column)}`).join(" OR ")
    const trigger = (suffix: string, event: string, condition: string) => {
      const name = `schoolbus_roster_${local}_${suffix}`
      const when = `(SELECT active FROM schoolbus_deliver WHERE id = 1) = 1${condition}`
      return { name, sql: `CREATE TRIGGER ${ident(name)} AFTER ${event} ON ${ident(local)} WHEN ${when} BEGIN ${markSql(`'${local}'`)}; END` }
    }
    return [trigger("i", "INSERT", ""), trigger("u", "UPDATE", ` AND (${isNews})`)]
  })

const markSql = (local: string): string =>
  `INSERT INTO schoolbus_roster_dirty (tbl, taken) SELECT ${local}, 0 WHERE NOT EXISTS (SELECT 1 FROM schoolbus_roster_dirty WHERE tbl = ${local} AND taken = 0)`

/**
 * Triggers that mark a table of people in the writing transaction, whoever writes, deliver included. `INSERT OR IGNORE`
 * would not do: inside a trigger the writing statement's own conflict clause counts, and could fail a program's write.
 */
export const rosterTriggers = (manifest: Manifest): ReadonlyArray<{ readonly name: string; readonly sql: string }> => [
  ...peopleTriggers(manifest),
  ...deviceTriggers(manifest),
]

const peopleTriggers = (manifest: Manifest): ReadonlyArray<{ readonly name: string; readonly sql: string }> =>
  Object.entries(manifest.devices?.people ?? {}).flatMap(([name, rule]) => {
    const table = manifest.tables.find((one) => one.name === name)
    if (table === undefined) return []
    const columns = [rule.id, rule.name, rule.card, rule.pin, rule.active, rule.group].flatMap((column) =>
      column === undefined ? [] : [ident(column)],
    )
    const local = `'${table.local.replaceAll("'", "''")}'`
    const body = markSql(local)
    return [
      ["i", "INSERT"],
      ["u", `UPDATE OF ${[...new Set(columns)].join(", ")}`],
      ["d", "DELETE"],
    ].map(([suffix, event]) => {
      const trigger = `schoolbus_roster_${table.local}_${suffix}`
      return { name: trigger, sql: `CREATE TRIGGER ${ident(trigger)} AFTER ${event} ON ${ident(table.local)} BEGIN ${body}; END` }
    })
  })
