import { mkdtempSync, readFileSync } from "node:fs"
import * as Effect from "effect/Effect"
import * as Scope from "effect/Scope"
import * as Exit from "effect/Exit"
import { insertRows, openGround } from "./test/bench/ground.ts"
import { openWal } from "./src/postgres/wal.ts"
import { wal2jsonOptions, wal2jsonDecoder } from "./src/down/decode.ts"
import { Slab, slabNumber } from "./src/libsql/slab.ts"
import { parseLsn } from "./src/model/lsn.ts"
const cpu = () => { const f = readFileSync("/proc/thread-self/stat", "utf8").split(") ")[1]!.split(" "); return [Number(readFileSync("/proc/thread-self/schedstat", "utf8").split(" ")[0]) / 1000, Number(f[12]) * 10000, Number(f[7])] }
const rows = 200_000
const kinds: any = { id: "bigint", school_id: "text", student_id: "bigint", class_id: "int", day: "text", status: "text", marked_by: "text", note: "text", updated_at: "text" }
const table: any = { id: 5, name: "public.attendance", key: [0], audienceAt: 1, columns: Object.keys(kinds).map((name) => ({ name, kind: kinds[name], toastable: kinds[name] === "text", generated: false })) }
const ground = await openGround()
try {
  await ground.backlog((sql) => insertRows(sql, rows, 100))
  for (const mode of ["read", "read", "decode", "decode", "slab", "slab", "read"]) {
    await ground.rewind(mkdtempSync("/tmp/perf/w-"))
    const scope = Scope.makeUnsafe()
    const wal = await Effect.runPromise(Scope.provide(openWal({ url: ground.url, slot: "schoolbus_postgres", from: 0n, plugin: wal2jsonOptions(["public.attendance", "schoolbus.schools"]), isDead: Effect.succeed(false) } as any), scope))
    const dec = wal2jsonDecoder<any>([table])
    const end = parseLsn(ground.end())
    const [c0, s0, f0] = cpu()
    const began = performance.now()
    let takes = 0, n = 0
    let slab = new Slab()
    await Effect.runPromise(Effect.gen(function* () {
      for (;;) {
        const t = yield* wal.take
        takes++
        if (mode !== "read") for (const m of t.messages) { const e = dec.read(m); if (e.kind === "put") { n++; if (mode === "slab") { slab.add(slabNumber(1) + slabNumber(n) + slabNumber(1782000000000000), e.key, `[${e.tokens.join(",")}]`); if (n % 1000 === 0) { slab.close(); slab = new Slab() } } } }
        if ((t.commits.at(-1)?.lsn ?? 0n) >= end) break
      }
    }))
    const [c1, s1, f1] = cpu()
    console.log(mode, "main us/row", ((c1 - c0) / rows).toFixed(2), "sys", ((s1 - s0) / rows).toFixed(2), "faults", ((f1 - f0) / rows).toFixed(2), "takes", takes, "rows/s", Math.round(rows / (performance.now() - began) * 1000))
    await Effect.runPromise(Scope.close(scope, Exit.void))
  }
} finally { await ground.close() }
