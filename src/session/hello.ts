/** The greeting: the file says which life of it calls and how far it is; the token that comes back is durable before it is used. */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import { Libsql } from "../libsql/client.ts"
import { noteContact } from "../libsql/contact.ts"
import { LinkRefused } from "../link/answer.ts"
import type { Identity, Link } from "../link/client.ts"
import { PROTOCOL } from "../link/protocol.ts"
import type { Manifest } from "../model/table.ts"
import { stopReason } from "../status/judge.ts"
import { VERSION } from "../version.ts"

interface StateRow {
  readonly incarnation: string
  readonly school: string | null
  readonly cluster: string | null
  readonly token: string
  readonly epoch: string
  readonly seq: number
  readonly cut: string
  readonly manifest: string | null
  readonly last_batch: number
}

export const readState = Effect.gen(function* () {
  const db = yield* Libsql
  const [row] = yield* db.read((tx) =>
    tx.all<StateRow>("SELECT incarnation, school, cluster, token, epoch, seq, cut, manifest, last_batch FROM schoolbus_state"),
  )
  return row as StateRow
})

export const hello = (link: Link) =>
  Effect.gen(function* () {
    const db = yield* Libsql
    const state = yield* readState
    const clock = yield* Clock.currentTimeMillis
    const welcome = yield* link.hello({
      protocol: PROTOCOL,
      incarnation: state.incarnation,
      token: state.token,
      epoch: state.epoch,
      seq: state.seq,
      cut: state.cut,
      lastBatch: state.last_batch,
      manifest: state.manifest === null ? 0 : (JSON.parse(state.manifest) as Manifest).version,
      clock,
      version: VERSION,
    })
    const now = yield* Clock.currentTimeMillis
    // A hub that has not seen Postgres yet does not know which one it is.
    const isOther = welcome.cluster !== "" && state.cluster !== null && state.cluster !== welcome.cluster
    if (isOther || (state.school !== null && state.school !== welcome.school.id)) {
      const code = isOther ? "wrong_cluster" : "wrong_school"
      const other = `the key belongs to school ${welcome.school.id}, this file to ${state.school}; start the node with the right key, or with another --data-dir`
      return yield* new LinkRefused({ status: 409, code, message: isOther ? stopReason(code) : other, expected: null })
    }
    // The token is durable before it is used for the first time.
    yield* db.write((tx) =>
      Effect.andThen(
        tx.run("UPDATE schoolbus_state SET token = ?, school = ?, cluster = coalesce(nullif(?, ''), cluster), contact_at = ?, stop = NULL", [
          welcome.token,
          welcome.school.id,
          welcome.cluster,
          now,
        ]),
        noteContact(tx, (clock + now) / 2, welcome.clock),
      ),
    )
    return { welcome, identity: { incarnation: state.incarnation, token: welcome.token } satisfies Identity }
  })

export const knowsMore = (lastBatch: number) =>
  Effect.gen(function* () {
    const db = yield* Libsql
    const [row] = yield* db.read((tx) =>
      tx.all<{ n: number }>(
        "SELECT EXISTS (SELECT 1 FROM schoolbus_batch WHERE number > ? AND (answered_at IS NOT NULL OR settled_at IS NOT NULL)) AS n",
        [lastBatch],
      ),
    )
    return row?.n === 1
  })
