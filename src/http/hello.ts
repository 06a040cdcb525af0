/** Hello: which file calls, whether it is the one that called before, and where it may go on. */
import { randomBytes } from "node:crypto"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import type * as Semaphore from "effect/Semaphore"
import type { SchoolKey } from "../down/enrolled.ts"
import { Feed } from "../down/feed.ts"
import type { Reader } from "../down/readers.ts"
import { Hello, PROTOCOL, type Welcome } from "../link/protocol.ts"
import { judgeToken, nextToken, printToken } from "../link/token.ts"
import { isTransient, Postgres } from "../postgres/client.ts"
import { answerJson, readJson } from "./link-body.ts"
import { authenticate, knowsTables, refuse, refuseCopy, tokenState } from "./link-caller.ts"

/** The head of the file's ledger, made at the first hello. null: Postgres is away, and what the hub remembers must do. */
const ledgerHead = (key: SchoolKey, incarnation: string) =>
  Effect.gen(function* () {
    const pg = yield* Postgres
    const rows = yield* pg.tx((session) =>
      Effect.andThen(
        session.execute("INSERT INTO schoolbus.incarnations (id, school) VALUES ($1::text::uuid, $2) ON CONFLICT (id) DO NOTHING", [
          incarnation,
          key.school,
        ]),
        session.query<{ school: string; last_batch: string }>(
          "SELECT school, last_batch::text AS last_batch FROM schoolbus.incarnations WHERE id = $1::text::uuid",
          [incarnation],
        ),
      ),
    )
    return { school: rows[0]?.school ?? key.school, lastBatch: Number(rows[0]?.last_batch ?? 0) }
  })

const firstReader = (incarnation: string, school: string): Reader => ({
  incarnation,
  school,
  token: 0,
  secret: "",
  secret_last: "",
  shown: 1,
  epoch: "",
  seq: 0,
  cut: "0",
  batch: 0,
  pending: null,
  seen_at: 0,
  status: null,
  closed: 0,
})

/** `hellos`: one at a time, so that no token is handed out twice. */
export const hello = (request: Request, hellos: Semaphore.Semaphore) =>
  Effect.gen(function* () {
    const key = yield* authenticate(request)
    yield* knowsTables
    const feed = yield* Feed
    const said = yield* readJson(request, Hello)
    if (said.protocol !== PROTOCOL) {
      const older = said.protocol < PROTOCOL ? "the school's" : "the hub's"
      return yield* refuse(
        426,
        "protocol",
        "Another protocol",
        `this hub speaks protocol ${PROTOCOL}, the school ${said.protocol}; update ${older} schoolbus`,
      )
    }
    const known = yield* feed.reader.get(said.incarnation)
    const ledger = yield* ledgerHead(key, said.incarnation).pipe(
      Effect.catchTag("PostgresError", (error) =>
        known !== null && isTransient(error) ? Effect.succeed({ school: known.school, lastBatch: known.batch }) : Effect.fail(error),
      ),
    )
    if (ledger.school !== key.school || (known !== null && known.school !== key.school)) {
      return yield* refuse(
        409,
        "wrong_school",
        "The file belongs to another school",
        "start the node with the key of the file's school, or with another --data-dir",
      )
    }
    return yield* hellos.withPermit(
      Effect.gen(function* () {
        const reader = (yield* feed.reader.get(said.incarnation)) ?? firstReader(said.incarnation, key.school)
        const tokens = tokenState(reader)
        const isOlder = said.lastBatch < ledger.lastBatch || (said.epoch === reader.epoch && said.seq < reader.seq)
        if (isOlder || judgeToken(tokens, said.token) === "wrong") return yield* refuseCopy(reader, isOlder)
        const next = nextToken(tokens, said.token, randomBytes(16).toString("hex"))
        const now = yield* Clock.currentTimeMillis
        yield* feed.reader.put({
          ...reader,
          token: next.number,
          secret: next.secret,
          secret_last: next.secretLast,
          shown: next.shown ? 1 : 0,
          seen_at: now,
        })
        const welcome: Welcome = {
          school: { id: key.school, name: key.name },
          cluster: yield* feed.cluster,
          epoch: (yield* feed.head).epoch,
          lastBatch: ledger.lastBatch,
          manifest: (yield* feed.manifest(key.school)).version,
          clock: now,
          token: printToken(next.number, next.secret),
          paused: key.paused,
        }
        return answerJson(welcome)
      }),
    )
  })
