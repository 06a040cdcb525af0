/** When to try again (pure). Many schools lose the same hub at the same moment; they must not all come back at the next one. */

const FIRST_MS = 500
const MOST_MS = 30_000

/** `failures`: attempts in a row that brought nothing, from 0. `random`: from 0 to 1. At least what the hub asked for. */
export const backoffMs = (failures: number, askedMs: number, random: number, mostMs = MOST_MS): number => {
  const own = Math.min(mostMs, FIRST_MS * 2 ** Math.min(failures, 16)) * (0.5 + random)
  return Math.round(Math.max(own, askedMs * (1 + random / 2)))
}
