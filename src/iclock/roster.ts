/** Who should be on a terminal, and the difference to what it has confirmed (pure). */
import { cutName } from "./command.ts"
import { normalPin } from "./cdata.ts"

export interface Person {
  readonly table: string
  readonly id: string
  readonly name: string
  readonly card: string | null
  /** A pin that the person's own row names. */
  readonly pin: string | null
}

export interface Held {
  readonly pin: string
  readonly table: string
  readonly id: string
  readonly name: string
  readonly card: string | null
  readonly status: string
  /** What its newest command does. */
  readonly removing: boolean
}

export type RosterStep =
  | { readonly kind: "add"; readonly person: Person; readonly pin: string; readonly isNewPin: boolean }
  | { readonly kind: "remove"; readonly held: Held }

const who = (table: string, id: string): string => `${table}\0${id}`

/**
 * Steps that bring a terminal from what it holds (or has been told) to what it should hold. A pin belongs to one person
 * for ever, so `taken` are all pins ever given, with their owner.
 */
export const rosterSteps = (people: ReadonlyArray<Person>, held: ReadonlyArray<Held>, taken: ReadonlyMap<string, { readonly table: string; readonly id: string }>): ReadonlyArray<RosterStep> => {
  const steps: Array<RosterStep> = []
  const pinOf = new Map<string, string>()
  for (const [pin, owner] of taken) pinOf.set(who(owner.table, owner.id), pin)
  const used = new Set(taken.keys())
  const heldBy = new Map(held.map((entry) => [who(entry.table, entry.id), entry]))
  let next = Math.max(0, ...[...used].filter((pin) => /^\d{1,8}$/.test(pin)).map(Number)) + 1
  const wanted = new Set<string>()
  for (const person of people) {
    const name = who(person.table, person.id)
    wanted.add(name)
    let pin = pinOf.get(name)
    const isNewPin = pin === undefined
    if (pin === undefined) {
      const own = person.pin !== null && /^\d{1,9}$/.test(person.pin) ? normalPin(person.pin) : /^\d{1,8}$/.test(person.id) ? normalPin(person.id) : null
      pin = own !== null && own !== "0" && !used.has(own) ? own : undefined
      while (pin === undefined) {
        if (!used.has(String(next))) pin = String(next)
        next++
      }
      used.add(pin)
      pinOf.set(name, pin)
    }
    const before = heldBy.get(name)
    const isSame = before !== undefined && !before.removing && before.name === cutName(person.name) && before.card === person.card
    if (!isSame) steps.push({ kind: "add", person, pin, isNewPin })
  }
  for (const entry of held) {
    if (!wanted.has(who(entry.table, entry.id)) && !entry.removing && entry.status !== "deleted") steps.push({ kind: "remove", held: entry })
  }
  return steps
}
