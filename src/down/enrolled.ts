/** The schools and their keys, as the feed's rows of `schoolbus.schools` and `schoolbus.school_keys` say: no request asks Postgres. */
import * as Effect from "effect/Effect"
import type { LibsqlError, LibsqlFile } from "../libsql/client.ts"
import { keyRangeOf } from "../model/key-range.ts"
import type { Manifest } from "../model/table.ts"

export interface SchoolKey {
  readonly school: string
  readonly name: string
  readonly hash: string
  readonly revoked: boolean
  readonly paused: boolean
}

export interface EnrolledSchool {
  readonly id: string
  readonly name: string
  /** Which range of bigint keys is its own. */
  readonly number: number
  readonly paused: boolean
  readonly revoked: boolean
}

export const makeEnrolled = (db: LibsqlFile) => {
  let keys: ReadonlyMap<string, SchoolKey> = new Map()
  let schools: ReadonlyMap<string, EnrolledSchool> = new Map()

  /** Reads them anew: after every append that wrote rows of the two tables. */
  const load: Effect.Effect<void, LibsqlError> = Effect.gen(function* () {
    const rows = yield* db.read((tx) =>
      tx.all<{ name: string; columns: string; body: string }>(
        `SELECT t.name, t.columns, e.body FROM entry e JOIN tables t ON t.id = e.tbl
          WHERE t.name IN ('schoolbus.schools', 'schoolbus.school_keys') AND e.body IS NOT NULL`,
      ),
    )
    const nextKeys = new Map<string, { readonly school: string; readonly hash: string; readonly revoked: boolean }>()
    const nextSchools = new Map<string, EnrolledSchool>()
    for (const row of rows) {
      const names = JSON.parse(row.columns) as ReadonlyArray<string>
      const values = JSON.parse(row.body) as ReadonlyArray<string | boolean | null>
      const value = (name: string) => values[names.indexOf(name)] ?? null
      const revoked = value("revoked_at") !== null
      const id = String(value("id"))
      if (row.name === "schoolbus.schools")
        nextSchools.set(id, { id, name: String(value("name")), number: Number(value("number")), paused: value("paused") === true, revoked })
      else nextKeys.set(id, { school: String(value("school")), hash: String(value("hash")), revoked })
    }
    schools = nextSchools
    // Asked for with every request and for every open stream.
    keys = new Map(
      [...nextKeys].flatMap(([id, key]) => {
        const school = nextSchools.get(key.school)
        if (school === undefined) return []
        const { name, paused } = school
        return [[id, { school: school.id, name, hash: key.hash, revoked: key.revoked || school.revoked, paused }] as const]
      }),
    )
  })

  const keyOf = (id: string): SchoolKey | null => keys.get(id) ?? null

  /** As its manifest names it. */
  const tell = (id: string): Manifest["school"] => {
    const school = schools.get(id)
    const range = keyRangeOf(school?.number ?? 0)
    return { id, name: school?.name ?? id, ...(range === null ? {} : { keys: range }) }
  }

  return {
    load,
    keyOf,
    /** All keys as they stand: another object when any of them may have changed. */
    keys: (): ReadonlyMap<string, SchoolKey> => keys,
    tell,
    all: (): ReadonlyArray<EnrolledSchool> => [...schools.values()],
    isOpen: (id: string): boolean => schools.get(id)?.revoked === false,
  }
}
