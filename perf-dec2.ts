import { readFileSync } from "node:fs"
import { wal2jsonDecoder } from "./src/down/decode.ts"
import { Slab, slabNumber } from "./src/libsql/slab.ts"
const cpu = () => Number(readFileSync("/proc/thread-self/schedstat", "utf8").split(" ")[0]) / 1000
const kinds: any = { id: "bigint", school_id: "text", student_id: "bigint", class_id: "int", day: "text", status: "text", marked_by: "text", note: "text", updated_at: "text" }
const table: any = { id: 5, name: "public.attendance", key: [0], audienceAt: 1, columns: Object.keys(kinds).map((name) => ({ name, kind: kinds[name], toastable: kinds[name] === "text", generated: false })) }
const N = 200_000
const bufs: Buffer[] = []
for (let n = 0; n < N; n++) bufs.push(Buffer.from(`{"action":"I","xid":${7000 + (n / 100 | 0)},"timestamp":"2026-11-25 20:40:06.15${String(n / 100 | 0).padStart(4, "0")}+00","schema":"public","table":"attendance","columns":[{"name":"id","value":${n}},{"name":"school_id","value":"north"},{"name":"student_id","value":${n % 1000}},{"name":"class_id","value":${n % 30}},{"name":"day","value":"2026-03-01"},{"name":"status","value":"present"},{"name":"marked_by","value":"teacher ${n % 40}"},{"name":"note","value":"a note of usual length"},{"name":"updated_at","value":"2026-01-01 08:00:00+00"}]}`))
const dec = wal2jsonDecoder<any>([table])
const enc = new TextEncoder()
const at = slabNumber(1782000000000000), no = slabNumber(1)
const concat = (t: string[]) => { let b = "["; for (let i = 0; i < t.length; i++) b += i === 0 ? t[i] : "," + t[i]; return b + "]" }
const V: Record<string, (from: number) => void> = {
  decode: (f) => { for (let i = f; i < f + 1000; i++) dec.read(bufs[i]!.toString("utf8")) },
  join: (f) => { const a = []; for (let i = f; i < f + 1000; i++) a.push((dec.read(bufs[i]!.toString("utf8")) as any).tokens.join(",")) },
  concat: (f) => { const a = []; for (let i = f; i < f + 1000; i++) a.push(concat((dec.read(bufs[i]!.toString("utf8")) as any).tokens)) },
  joinAll: (f) => { const a = []; for (let i = f; i < f + 1000; i++) a.push((dec.read(bufs[i]!.toString("utf8")) as any).tokens.join(",")); a.join("") },
  concatAll: (f) => { const a = []; for (let i = f; i < f + 1000; i++) a.push(concat((dec.read(bufs[i]!.toString("utf8")) as any).tokens)); a.join("") },
  joinAllEnc: (f) => { const a = []; for (let i = f; i < f + 1000; i++) a.push((dec.read(bufs[i]!.toString("utf8")) as any).tokens.join(",")); enc.encode(a.join("")) },
  slab: (f) => { const s = new Slab(); for (let i = f; i < f + 1000; i++) { const e = dec.read(bufs[i]!.toString("utf8")) as any; s.add(no + slabNumber(i) + at, e.key, `[${e.tokens.join(",")}]`) } s.close() },
  slabConcat: (f) => { const s = new Slab(); for (let i = f; i < f + 1000; i++) { const e = dec.read(bufs[i]!.toString("utf8")) as any; s.add(no + slabNumber(i) + at, e.key, concat(e.tokens)) } s.close() },
}

const lengths = (first: number, second: number) => String(1000000 + first).slice(1) + String(1000000 + second).slice(1)
const PADS = Array.from({ length: 4096 }, (_, i) => String(1000000 + i).slice(1))
const mk = (opt: { flat: boolean; places: string; key?: boolean }) => (f: number) => {
  const t: string[] = []; const lens: number[] = []
  const m = opt.key ? new Map() : null
  for (let i = f; i < f + 1000; i++) {
    const e = dec.read(bufs[i]!.toString("utf8")) as any
    m?.set(e.key, e)
    const body = e.tokens.join(",")
    if (opt.flat) t.push(no, slabNumber(i), at, e.key, "[", body, "]"); else t.push(no + slabNumber(i) + at, e.key, `[${body}]`)
    lens.push(e.key.length, body.length + 2)
  }
  enc.encode(t.join(""))
  let offset = 1
  if (opt.places === "none") return
  if (opt.places === "arr") { const p: string[] = []; for (let i = 0; i < lens.length; i += 2) { p.push(offset + lengths(lens[i]!, lens[i + 1]!)); offset += 51 + lens[i]! + lens[i + 1]! } enc.encode(`[${p.join(",")}]`) }
  if (opt.places === "pads") { const p: string[] = []; for (let i = 0; i < lens.length; i += 2) { p.push(",", String(offset), PADS[lens[i]!]!, PADS[lens[i + 1]!]!); offset += 51 + lens[i]! + lens[i + 1]! } enc.encode(`[${p.join("")}]`) }
  if (opt.places === "rope") { let p = ""; for (let i = 0; i < lens.length; i += 2) { p += "," + offset + PADS[lens[i]!]! + PADS[lens[i + 1]!]!; offset += 51 + lens[i]! + lens[i + 1]! } enc.encode(`[${p}]`) }
  if (opt.places === "bytes") { const out = new Uint8Array(1000 * 21); let o = 0; const put = (v: number, w: number) => { for (let k = o + w - 1; k >= o; k--) { out[k] = 48 + (v % 10); v = (v / 10) | 0 } o += w }; for (let i = 0; i < lens.length; i += 2) { out[o++] = 44; put(offset, 8); put(lens[i]!, 6); put(lens[i + 1]!, 6); offset += 51 + lens[i]! + lens[i + 1]! } }
}
const W: Record<string, (f: number) => void> = {
  ropeNone: mk({ flat: false, places: "none" }), flatNone: mk({ flat: true, places: "none" }),
  flatNoneMap: mk({ flat: true, places: "none", key: true }), ropeNoneMap: mk({ flat: false, places: "none", key: true }),
  flatArr: mk({ flat: true, places: "arr" }), flatPads: mk({ flat: true, places: "pads" }), flatRope: mk({ flat: true, places: "rope" }), flatBytes: mk({ flat: true, places: "bytes" }),
}
for (const k in W) { const out = []; for (let r = 0; r < 5; r++) { const c = cpu(); for (let i = 0; i < N; i += 1000) W[k]!(i); out.push(((cpu() - c) / N).toFixed(2)) } console.log(k, out.join(" ")) }
