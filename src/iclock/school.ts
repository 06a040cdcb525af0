/** The school that a node's file is of, and the marks that make its roster look at terminals again. */
import * as Effect from "effect/Effect"
import type { LibsqlError, Tx } from "../libsql/client.ts"
import type { Manifest } from "../model/table.ts"

/** The school and its tables, as the last manifest left them. */
export interface School {
  readonly school: string
  readonly manifest: Manifest
}

const parsed = { text: "", manifest: null as Manifest | null }

/**
 * Terminals and pins that head office has of the school are here: a cut is applied, or their class and those above it are
 * (`high`, 8), while lower ones are still on their way. A file made anew would else give numbers to people that others have.
 */
const HAS_TERMINALS = `(cut <> '0' OR terminals > 0 OR (
  EXISTS (SELECT 1 FROM schoolbus_stage WHERE cls < 8) AND NOT EXISTS (SELECT 1 FROM schoolbus_stage WHERE cls >= 8)))`

/** The school and its tables; null before they, and its terminals, stand in the file. */
export const readSchool = (tx: Tx): Effect.Effect<School | null, LibsqlError> =>
  Effect.gen(function* () {
    const [row] = yield* tx.all<{ school: string | null; manifest: string | null; ready: number }>(
      `SELECT school, manifest, ${HAS_TERMINALS} AND EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'devices') AS ready
         FROM schoolbus_state`,
    )
    if (row?.school == null || row.manifest === null || row.ready !== 1) return null
    if (parsed.text !== row.manifest) Object.assign(parsed, { text: row.manifest, manifest: JSON.parse(row.manifest) as Manifest })
    return { school: row.school, manifest: parsed.manifest as Manifest }
  })

/** Makes the roster look at every terminal, also at what failed before. */
export const markAll = (tx: Tx): Effect.Effect<number, LibsqlError> => mark(tx, "*")
/** Makes the roster send this terminal everyone. */
export const markWhole = (tx: Tx, deviceId: number): Effect.Effect<number, LibsqlError> => mark(tx, `=${deviceId}`)
/** Makes the roster look at whose the pins of new punches are. */
export const markPunches = (tx: Tx): Effect.Effect<number, LibsqlError> => mark(tx, "punches")
const mark = (tx: Tx, what: string) => tx.run("INSERT OR IGNORE INTO schoolbus_roster_dirty (tbl, taken) VALUES (?, 0)", [what])
