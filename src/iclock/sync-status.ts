/** What a terminal holds of whom it should hold, per person and in sums, judged from what the file says (pure). */
import type { Device } from "./device.ts"
import { type HeldRow, isRemoved, type UnknownPin, wrongCard } from "./held.ts"
import { type ForeignUser, type Person, pinFault } from "./roster.ts"

export interface PersonStatus {
  readonly pin: string | null
  readonly table: string
  readonly id: string
  readonly name: string
  readonly card: string | null
  readonly group: string | null
  /** `not_synced`: nothing was ever queued. */
  readonly status: "not_synced" | "pending" | "sent" | "synced" | "failed" | "deleted"
  /** On its way off the terminal, or gone. */
  readonly removed: boolean
  readonly attempts: number
  readonly error: string | null
  readonly syncedAt: string | null
}

/** The counts are of the people that the terminal should hold; those on their way off it are listed only. */
export interface DeviceSync {
  readonly device: Device
  readonly summary: {
    readonly total: number
    readonly synced: number
    readonly pending: number
    readonly failed: number
    readonly not_synced: number
  }
  readonly people: ReadonlyArray<PersonStatus>
  /** Users that the terminal reports and nobody here has. */
  readonly foreign: ReadonlyArray<ForeignUser & { readonly name: string }>
  /** Pins of punches that nobody is known for. */
  readonly unknown: ReadonlyArray<UnknownPin>
  /** When the terminal's own list was last compared. */
  readonly comparedAt: string | null
}

/** What the terminal itself says stands above what it once confirmed. */
const judged = (row: HeldRow): Pick<PersonStatus, "status" | "error"> => {
  if (row.missing === 1) return { status: "pending", error: "the terminal's own list does not show this person; it is sent again" }
  if (wrongCard(row)) return { status: "failed", error: `the terminal shows the card ${row.listed_card ?? "(none)"}; it is sent again` }
  if (row.lingers === 1) return { status: "pending", error: "the terminal's own list still shows this person; it is removed again" }
  return { status: row.status === "unknown" ? "not_synced" : row.status, error: row.error }
}

export const statusOf = (people: ReadonlyArray<Person>, rows: ReadonlyArray<HeldRow>): Pick<DeviceSync, "summary" | "people"> => {
  const byPerson = new Map(rows.filter((row) => !isRemoved(row)).map((row) => [`${row.person_table}\0${row.person_id}`, row]))
  const listed = people.map((person): PersonStatus => {
    const row = byPerson.get(`${person.table}\0${person.id}`)
    const { table, id, name, card, group } = person
    const base = { table, id, name, card, group, removed: false }
    if (row === undefined) return { ...base, pin: null, status: "not_synced", attempts: 0, error: null, syncedAt: null }
    const { status, error } = judged(row)
    return { ...base, pin: row.pin, status, error: error ?? pinFault(person.pin, row.pin), attempts: row.attempts, syncedAt: row.synced_at }
  })
  const wanted = new Set(people.map((person) => `${person.table}\0${person.id}`))
  const leaving = rows
    .filter((row) => isRemoved(row) || !wanted.has(`${row.person_table}\0${row.person_id}`))
    .map(
      (row): PersonStatus => ({
        pin: row.pin,
        table: row.person_table,
        id: row.person_id,
        name: row.name ?? "",
        card: row.card,
        group: null,
        ...judged(row),
        removed: true,
        attempts: row.attempts,
        syncedAt: row.synced_at,
      }),
    )
  const count = (...states: ReadonlyArray<PersonStatus["status"]>): number => listed.filter((person) => states.includes(person.status)).length
  return {
    summary: {
      total: listed.length,
      synced: count("synced"),
      pending: count("pending", "sent"),
      failed: count("failed"),
      not_synced: count("not_synced", "deleted"),
    },
    people: [...listed, ...leaving],
  }
}
