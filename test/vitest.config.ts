import { join } from "node:path"
import { defineConfig } from "vitest/config"

export default defineConfig({
  test: {
    root: join(import.meta.dirname, ".."),
    include: ["test/**/*.test.ts"],
    globalSetup: [join(import.meta.dirname, "support/cluster-setup.ts")],
    testTimeout: 60_000,
    hookTimeout: 120_000,
    // Each Postgres test drives a server, a hub and schools of its own: more files at once only make each other late.
    maxWorkers: 2,
    pool: "forks",
  },
})
