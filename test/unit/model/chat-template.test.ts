import { describe, expect, it } from 'vitest';
import { ConfigError } from '../../../config/errors.ts';
import { makeChatTemplate, type ChatMessage } from '../../../model/chat-template.ts';
import { parseTokenizer } from '../../../model/tokenizer-json.ts';

const tokenizer = parseTokenizer({ model: { type: 'BPE', vocab: { a: 0 }, merges: [] } }, 'test');
const messages: ChatMessage[] = [
  { role: 'user', content: 'Hi <b>' },
  { role: 'assistant', content: 'Yo' },
];

function render(chatTemplate: string, addGenerationPrompt = true): string | undefined {
  const config = { bos_token: '<s>', eos_token: '</s>', model_max_length: 3 };
  const files = { source: 'here', tokenizer, config, bosId: 1, eosIds: [2], chatTemplate };
  return makeChatTemplate(files)?.render(messages, { addGenerationPrompt });
}

describe('render', () => {
  it('fills in messages and special tokens, without escaping', () => {
    const template =
      "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}";
    expect(render(template)).toBe('<s>user: Hi <b></s>assistant: Yo</s>assistant:');
    expect(render(template, false)).toBe('<s>user: Hi <b></s>assistant: Yo</s>');
  });

  it('drops the line break after a block, as transformers does', () => {
    expect(render('{% if true %}\nx\n{% endif %}\n')).toBe('x\n');
  });

  it('knows what templates ask about', () => {
    expect(render('{% if tools %}t{% else %}{{ documents is none }}{{ unheard_of is defined }}{% endif %}')).toBe(
      'truefalse',
    );
    expect(render("{{ strftime_now('%Y') }}")).toMatch(/^\d{4}$/);
    expect(render('{{ range(3) | length }}{{ range(5, 1, -2) | join }}{{ range(1, 4) | join }}')).toBe('353123');
  });

  it('no template, or an empty one', () => {
    expect(render(' \n')).toBeUndefined();
    expect(
      makeChatTemplate({ source: '', tokenizer, config: {}, bosId: 1, eosIds: [], chatTemplate: undefined }),
    ).toBeUndefined();
  });
});

describe('hostile templates', () => {
  it.each([
    "{{ raise_exception.constructor('return process')() }}",
    "{{ messages.constructor.constructor('return process.env')() }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ ''|attr('__class__') }}",
    '{{ range.call(1, 2) }}',
  ])('%s is refused', (template) => {
    expect(() => render(template)).toThrow(ConfigError);
  });

  it('see no properties of host objects', () => {
    expect(
      render(
        "{{ messages[0].constructor }}{{ messages.__proto__ }}{{ ''.constructor }}{{ range.name }}{{ self.__init__.__globals__['os'] }}",
      ),
    ).toBe('');
  });

  it.each([
    ['{{ unclosed', 'chat template of here: Unexpected end of input'],
    ["{{ raise_exception('roles must alternate') }}", 'chat template of here: roles must alternate'],
    ['{{ range(10**12) }}', 'chat template of here: range() of 1000000000000 numbers; at most 100000 are allowed'],
    ['{{ range(1, 2, 0) }}', 'chat template of here: range() of Infinity numbers; at most 100000 are allowed'],
  ])('%s: %s', (template, message) => {
    expect(() => render(template)).toThrow(new ConfigError(message));
  });

  it('may nest deeper than the stack', () => {
    expect(() => render(`{{ ${'('.repeat(100_000)}`)).toThrow(
      'chat template of here: Maximum call stack size exceeded',
    );
  });

  it('cannot give endless text', () => {
    const doubling = (times: number): string =>
      `{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(${times}) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}`;
    expect(() => render(doubling(60))).toThrow('chat template of here: Invalid string length');
    expect(() => render(doubling(24))).toThrow(
      'chat template of here: gives 134217728 characters; at most 33554432 are allowed',
    );
  });

  it('are stopped when they take too long', () => {
    const loop = '{% for i in range(100000) %}';
    expect(() => render(loop.repeat(3) + '{% endfor %}'.repeat(3))).toThrow(
      new ConfigError('chat template of here: takes longer than 2000 ms'),
    );
  });
});
