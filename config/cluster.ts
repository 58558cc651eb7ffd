/**
 * The cluster file as a strict schema with every default: what may be written, what it means, and which of it works
 * today. Values that a later version will understand are accepted by name and refused with the values that work now;
 * nothing is ignored. Read next: load.ts, which reads a file, puts flags over it and reports all mistakes at once.
 */
import { z } from 'zod';
import { schemes } from './schemes.ts';
import { expertShardings, maxWorldSize } from './shard-plan.ts';

export const schemeNames = ['auto', ...schemes] as const;
export const backendNames = ['ggml', 'gpujs', 'reference'] as const;
export const transportNames = ['auto', 'shm', 'zeromq', 'mpi'] as const;
export const payloadNames = ['f32', 'f16', 'q8_0'] as const;
export const cacheTypeNames = ['f16', 'f32', 'q8_0'] as const;
export const weightNames = ['keep', 'f32', 'f16', 'q8_0', 'q4_0', 'q4_K'] as const;
export const reparameterizationNames = ['weighted', 'pca', 'hadamard', 'none'] as const;
export const prefillNames = ['exact', 'sliced'] as const;
export const normNames = ['exact', 'sliced'] as const;

/** Where `contextTokens: 0` stops: long contexts take memory that a first run should not. */
export const defaultContextCeiling = 4096;

/** Where ranks that are not local find the coordinator unless `bind` says otherwise. */
export const defaultRemoteBind = 'tcp://127.0.0.1:7070';

/** Of --window and --sinks: every rank keeps so many whole latents per sequence and layer. */
export const maxExactTokens = 4096;

/** Of scheme tpla: 68 rows per sequence and layer, whatever the context. Measured in docs/schemes.md. */
export const defaultExactTokens = { window: 64, sinks: 4 } as const;

const wholeNumber = z.number().int();

const attentionSchema = z.strictObject({
  scheme: z.enum(schemeNames).default('auto'),
  /** Latent shards; 0: as many as ranks in schemes that cut the latent, 1 in any other. */
  latentGroups: wholeNumber.min(0).max(maxWorldSize).default(0),
  reparameterization: z.enum(reparameterizationNames).default('weighted'),
  /** Folder of `tpla rotate` with corrections of cut attention; empty: none. */
  corrections: z.string().default(''),
  /** Of scheme tpla: first latent columns that every group keeps, in place of the last. */
  overlap: wholeNumber.min(0).max(4096).default(0),
  prefill: z.enum(prefillNames).default('exact'),
  /** Of a latent that the model norms: by all its columns, or in decode by those of the rank, as in the paper. */
  norm: z.enum(normNames).default('exact'),
  /** Last tokens that scheme tpla scores with whole latents. Absent: 64 where the latent is cut, else 0. */
  window: wholeNumber.min(0).max(maxExactTokens).optional(),
  /** First tokens, likewise. Absent: 4 where the latent is cut, else 0. */
  sinks: wholeNumber.min(0).max(maxExactTokens).optional(),
});

const cacheSchema = z.strictObject({
  type: z.enum(cacheTypeNames).default('f16'),
  /** Tokens that one sequence may hold; 0: as many as the model was made for, at most defaultContextCeiling. */
  contextTokens: wholeNumber.min(0).max(1_048_576).default(0),
  /** Sequences that may be in the cache at once. Absent it is 0: 4 in `tpla serve`, 1 in commands that run one sequence. */
  slots: wholeNumber.min(1).max(256).default(0),
});

const computeSchema = z.strictObject({
  backend: z.enum(backendNames).default('ggml'),
  /** Of each rank. */
  threads: wholeNumber.min(1).max(256).default(1),
  /** Storage type of matrices; keep: as in the file. */
  weights: z.enum(weightNames).default('keep'),
  /** How routed experts are spread: columns of each on every rank, or whole experts dealt out. */
  expertSharding: z.enum(expertShardings).default('columns'),
  /** Most tokens of one step: a longer prompt is prefilled in pieces of this size. */
  maxStepTokens: wholeNumber.min(1).max(4096).default(256),
});

const collectiveSchema = z.strictObject({
  /** mpi: every rank is `host: join`, started by mpirun or srun as `tpla worker --from-env`. */
  transport: z.enum(transportNames).default('auto'),
  /** Deadline of every receive of a collective. */
  timeoutMs: wholeNumber.min(100).max(3_600_000).default(10_000),
  /** What the sums behind attention and feed-forward travel as between hosts; all but f32 lose precision. */
  payload: z.enum(payloadNames).default('f32'),
});

const rankSchema = z
  .strictObject({
    host: z.string().default('local').superRefine(checkHost),
    /** Only ssh: path of the model there; empty: the coordinator's. */
    model: z.string().default(''),
    /** Only ssh: the `tpla` to run there, a name on its PATH or a path. */
    program: z.string().min(1).default('tpla'),
    /** Device name of the backend; empty: its default. */
    device: z.string().default(''),
    /** Size of this rank's part of heads, feed-forward and vocabulary, relative to the others'. */
    share: z.number().positive().max(1000).default(1),
  })
  .superRefine((rank, context) => {
    if (rank.host.startsWith('ssh://')) return;
    if (rank.model !== '') context.addIssue(`model: only for host ssh://; a joined worker names its own with --model`);
    if (rank.program !== 'tpla') context.addIssue(`program: only for host ssh://; this rank's host is ${rank.host}`);
  });

const coordinatorSchema = z.strictObject({
  /**
   * Control endpoint; auto: a fresh socket file (on Windows a free loopback port), with ranks that are not local
   * defaultRemoteBind. Ranks on other machines reach this one, its local ranks included, at its address.
   */
  bind: z.string().default('auto').superRefine(checkBind),
  /** At the start, time for ranks on other machines to join. */
  joinSeconds: z.number().min(1).max(86_400).default(300),
});

/** Keys of clusters with ranks on other machines; where all ranks are local there is nothing to protect. */
const securitySchema = z.strictObject({
  /** auto: on where there is a key file, and required where `bind` can be reached from other machines. */
  curve: z.enum(['auto', 'on', 'off']).default('auto'),
  /** The key file that `tpla keys` writes, or its folder. */
  keys: z.string().default('./keys'),
  /** Whoever reaches the port may join, read what the ranks say and change it. */
  allowNoKeys: z.boolean().default(false),
});

/** Read by `tpla serve`. */
const apiSchema = z.strictObject({
  listen: z.string().default('127.0.0.1:8080'),
  apiKeyEnv: z.string().default('TPLA_API_KEY'),
  /** Web origin whose pages may call the API, `*` for any; empty: only pages of this server. */
  corsOrigin: z.string().default(''),
});

/** Read by `tpla serve`: a command that ends with its run does not start a rank again. */
const faultsSchema = z.strictObject({
  heartbeatMs: wholeNumber.min(10).max(60_000).default(200),
  restarts: wholeNumber.min(0).max(1000).default(5),
  backoffMs: wholeNumber.min(0).max(600_000).default(250),
  /** Requests wait so long for a rank on another machine to come back; then they fail until it does. */
  rejoinMs: wholeNumber.min(100).max(3_600_000).default(10_000),
  allowFewerRanks: z.boolean().default(false),
});

export const clusterSchema = z
  .strictObject({
    /** Hugging Face folder, GGUF file, or `default`. */
    model: z.string().min(1),
    attention: attentionSchema.prefault({}),
    cache: cacheSchema.prefault({}),
    compute: computeSchema.prefault({}),
    collective: collectiveSchema.prefault({}),
    ranks: z.array(rankSchema).min(1).max(maxWorldSize),
    coordinator: coordinatorSchema.prefault({}),
    security: securitySchema.prefault({}),
    api: apiSchema.prefault({}),
    faults: faultsSchema.prefault({}),
  })
  .superRefine(({ collective, ranks }, context) => {
    const { transport, payload } = collective;
    if (payload !== 'f32' && (transport === 'shm' || transport === 'mpi'))
      context.addIssue({
        code: 'custom',
        path: ['collective', 'payload'],
        message: `${payload} is for sums over ZeroMQ between hosts, and transport ${transport} sends none; leave it out, or use transport auto or zeromq`,
      });
    if (collective.transport === 'mpi' && ranks.some(({ host }) => host !== 'join'))
      context.addIssue({
        code: 'custom',
        path: ['collective', 'transport'],
        message:
          'mpi carries sums between ranks that mpirun or srun started: write `host: join` for every rank and start `tpla worker --from-env` under it; see docs/deploy.md',
      });
  });

export type ClusterConfig = z.infer<typeof clusterSchema>;

function checkHost(host: string, context: z.RefinementCtx<string>): void {
  if (host !== 'local' && host !== 'join' && parseSshHost(host) === null)
    context.addIssue(`expected local, join or ssh://user@host, got ${JSON.stringify(host)}`);
}

/** null: not of the form ssh://user@host:port, where user and port may be absent. */
export function parseSshHost(host: string): { readonly destination: string; readonly port: string | undefined } | null {
  // Nothing here may begin with a dash: ssh would take it for an option.
  const match = /^ssh:\/\/((?:[\w.][\w.-]*@)?[\w.][\w.-]*)(?::(\d{1,5}))?$/.exec(host);
  return match?.[1] === undefined ? null : { destination: match[1], port: match[2] };
}

function checkBind(endpoint: string, context: z.RefinementCtx<string>): void {
  if (endpoint === 'auto') return;
  const match = /^tcp:\/\/([\w.-]+):(\d{1,5})$/.exec(endpoint);
  if (match === null || Number(match[2]) > 65_535)
    context.addIssue(`expected auto or tcp://ADDRESS:PORT, got ${JSON.stringify(endpoint)}`);
  else if (match[1] === '0.0.0.0')
    context.addIssue(`${endpoint}: name the address by which the other machines reach this one`);
}

/** Whether no other machine can reach this endpoint. */
export function isLoopbackEndpoint(endpoint: string): boolean {
  return !endpoint.startsWith('tcp://') || /^tcp:\/\/(127\.[\d.]+|localhost):/.test(endpoint);
}
