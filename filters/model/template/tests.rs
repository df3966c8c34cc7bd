//! Static properties of template sources.

use super::*;
use proptest::prelude::*;
use template_dataflow::Dataflow;

#[test]
fn a_template_that_loops_over_content_expects_parts() {
    for (source, expected) in [
        ("{% for m in messages %}{{ m.content }}{% endfor %}", ContentFormat::String),
        ("{%- for part in message['content'] -%}", ContentFormat::Parts),
        ("{% for part in message.content | list %}", ContentFormat::Parts),
        ("{%for x in y%}{% for item in content %}", ContentFormat::Parts),
        ("{% for m in message.content_list %}", ContentFormat::String),
    ] {
        assert_eq!(content_format(source), expected, "{source}");
    }
}

#[test]
fn generation_tags_have_no_effect() {
    let source = "a{%- generation %} b {% endgeneration -%}\n c{% if generation %}{% endif %}";
    let expected = "a{%- if true %} b {% endif -%}\n c{% if generation %}{% endif %}";
    assert_eq!(without_generation_tags(source.to_owned()), expected);
}

/// Templates that only copy contents, with their literals and whether they trim.
const COPYING: [(&str, &[&str], bool); 9] = [
    (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' }}{% endfor %}\
         {% if add_generation_prompt %}<|im_start|>assistant{% endif %}",
        &[],
        false,
    ),
    // Llama 3: trims, and puts text before the first message's content.
    (
        "{% set loop_messages = messages %}{% for message in loop_messages %}\
         {% set content = '<|h|>' + message['role'] + '<|e|>\n\n' + message['content'] | trim + '<|eot|>' %}\
         {% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}",
        &[],
        true,
    ),
    // Mistral, Gemma: the system message goes before the first user message.
    (
        "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}\
         {% set rest = messages[1:] %}{% else %}{% set rest = messages %}{% endif %}\
         {% for m in rest %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}\
         {{ raise_exception('roles must alternate ' + m['content']) }}{% endif %}\
         {% if loop.first and system is defined %}{{ system + '\n\n' + m.content.strip() }}\
         {% else %}{{ m.content }}{% endif %}{% if loop.last %}{{ eos_token }}{% endif %}{% endfor %}",
        &[],
        true,
    ),
    // Qwen 3: position of the last question, and thinking before an answer.
    (
        "{%- set ns = namespace(multi_step=true, last=messages|length - 1) %}\
         {%- for m in messages[::-1] %}{%- set index = (messages|length - 1) - loop.index0 %}\
         {%- if ns.multi_step and m.role == 'user' and m.content is string and not \
         (m.content.startswith('<tool>') and m.content.endswith('</tool>')) %}\
         {%- set ns.multi_step = false %}{%- set ns.last = index %}{%- endif %}{%- endfor %}\
         {%- for m in messages %}{%- set content = m.content %}{%- if '</think>' in content %}\
         {%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}\
         {%- if loop.index0 > ns.last and (loop.last or m.reasoning_content is defined) %}T{% endif %}\
         {{- m.role }}:{{ content }}\n{%- endfor %}",
        &["<tool>", "</tool>", "</think>"],
        true,
    ),
    // DeepSeek: collects the system messages first.
    (
        "{% set ns = namespace(is_first=false, system='') %}{% for m in messages %}\
         {% if m['role'] == 'system' %}{% set ns.system = ns.system + m['content'] %}{% endif %}{% endfor %}\
         {{ bos_token }}{{ ns.system }}{% for m in messages %}{% if m['role'] == 'user' %}\
         {{ '<U>' + m['content'] }}{% elif m['role'] == 'assistant' and m['content'] is not none %}\
         {{ '<A>' + m['content'].replace('<x>', '') ~ '<E>' }}{% endif %}{% endfor %}",
        &["<x>"],
        false,
    ),
    (
        "{% macro said(who, what='') %}{{ who }}: {{ what|trim }}\n{% endmacro %}\
         {% for m in messages %}{{ said(m.role, m.get('content', '')) }}{{ said(m.role, what=m.content) }}{% endfor %}",
        &[],
        true,
    ),
    (
        "{% for m in messages if m.content %}{% set text %}[{{ m.content }}]{% endset %}{{ text }}\
         {{ m.content if m.content != 'none' else 'x' }}{{ m.content or 'y' }}{% endfor %}\
         {{ (messages | last).content | default('') }}{{ (messages | selectattr('role', 'equalto', 'user') | list)[-1].content }}",
        &["none"],
        false,
    ),
    (
        "{% for m in [messages[0]] + messages %}{{ m.content if m.content not in ['a', 'bc'] else '' }}{% endfor %}",
        &["a", "bc"],
        false,
    ),
    (
        "{% for m in messages %}{{ (m.content.split('|') | first) }}{{ loop.previtem.content }}{% endfor %}",
        &["|"],
        false,
    ),
];

/// Templates in which a content influences more than its own place.
const INSPECTING: [&str; 22] = [
    "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
    "{% for m in messages %}{{ m.content | length }}{% endfor %}",
    "{% for m in messages %}{{ m.content[:4] }}{% endfor %}",
    "{% for m in messages %}{{ m.content[0] }}{% endfor %}",
    "{% for m in messages %}{{ m.content.split('x')[1] }}{% endfor %}",
    "{% for m in messages %}{{ m.content.split() | first }}{% endfor %}",
    "{% for m in messages %}{{ m.content.strip('ab') }}{% endfor %}",
    "{% for m in messages %}{{ m | tojson }}{% endfor %}",
    "{{ messages | tojson }}",
    "{{ messages }}",
    "{{ messages | map(attribute='content') | join }}",
    "{{ messages | selectattr('content', 'equalto', 'x') | list | length }}",
    "{% for m in messages %}{% if m.content == messages[0].role %}x{% endif %}{% endfor %}",
    "{% for m in messages %}{% if m.content < 'm' %}x{% endif %}{% endfor %}",
    "{% for m in messages %}{% if ('<' + m.content).startswith('<tool>') %}x{% endif %}{% endfor %}",
    "{% for m in messages %}{% if m.content in 'yes or no' %}x{% endif %}{% endfor %}",
    "{% for m in messages %}{% for c in m.content %}{{ c }}.{% endfor %}{% endfor %}",
    "{% for m in messages %}{% for k, v in m.items() %}{{ v | length }}{% endfor %}{% endfor %}",
    "{% macro f(x) %}{{ x | length }}{% endmacro %}{% for m in messages %}{{ f(m.content) }}{% endfor %}",
    "{% set ns = namespace(t='') %}{% for m in messages %}{% set ns.t = ns.t + m.content %}{% endfor %}{{ ns['t'] | length }}",
    "{% set t %}{% for m in messages %}{{ m.content }}{% endfor %}{% endset %}{{ t | length }}",
    "{% for m in messages %}{{ '%s' | format(m.content) }}{% endfor %}",
];

fn syntax() -> SyntaxConfig {
    SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().unwrap()
}

#[test]
fn templates_that_only_copy_contents_are_accepted() {
    for (source, words, trims) in COPYING {
        let tree = machinery::parse(source, NAME, syntax()).unwrap();
        let words = words.iter().map(|word| (*word).to_owned()).collect();
        assert_eq!(
            analyze(&tree),
            Some(Dataflow { content_literals: words, trims_content: trims }),
            "{source}"
        );
    }
    for source in INSPECTING {
        let tree = machinery::parse(source, NAME, syntax()).unwrap();
        assert_eq!(analyze(&tree), None, "{source}");
    }
}

proptest! {
    #[test]
    fn a_filled_skeleton_equals_the_rendered_template(
        template in 0..COPYING.len(),
        conversations in prop::collection::vec(
            prop::collection::vec(("system|user|assistant", content()), 1..5), 1..4),
        generation: bool,
    ) {
        let template = ChatTemplate::compile(COPYING[template].0.to_owned()).unwrap();
        let config = Config::read(br#"{"bos_token": "<s>", "eos_token": "</s>"}"#).unwrap();
        let skeletons = template.skeletons.as_ref().unwrap();
        for conversation in &conversations {
            let plain: Vec<PlainMessage<'_>> = conversation
                .iter()
                .map(|(role, content)| PlainMessage { role, content })
                .collect();
            let whole = |messages: &[PlainMessage<'_>]| {
                let conversation = Conversation::of(messages, generation);
                template.render_whole(conversation, &config, UnixTime(0)).ok().map(|done| done.text)
            };
            // Once rendered and once from the cache.
            for _ in 0..2 {
                if let Some(filled) = skeletons.fill(&plain, generation, whole) {
                    prop_assert_eq!(Some(filled), whole(&plain));
                }
            }
        }
    }
}

#[test]
fn a_deeply_nested_template_is_analysed_in_bounded_time() {
    let splits = format!("{{{{ x{} }}}}", ".split('a')[0]".repeat(60));
    let mut chain = "x".to_owned();
    (0..20).for_each(|_| chain = format!("(1 < {chain} < 2)"));
    let chain = format!("{{% if {chain} %}}{{{{ messages[0].content }}}}{{% endif %}}");
    for source in [splits, chain] {
        let tree = machinery::parse(&source, NAME, syntax()).unwrap();
        assert!(analyze(&tree).is_some(), "{source}");
    }
}

/// Contents with the templates' literals, with white space, and empty ones.
fn content() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "",
        " ",
        "\n",
        "a",
        "bc",
        "none",
        "<tool>",
        "</tool>",
        "</think>",
        "<x>",
        "|",
        "Tide",
        "潮汐",
        "\u{F0001}",
    ]);
    prop::collection::vec(piece, 0..5).prop_map(|pieces| pieces.concat())
}

#[test]
fn skeletons_are_cached_and_bounded() {
    let template = ChatTemplate::compile(COPYING[0].0.to_owned()).unwrap();
    let skeletons = template.skeletons.as_ref().unwrap();
    fn one(role: &str) -> [PlainMessage<'_>; 1] {
        [PlainMessage { role, content: "Tide?" }]
    }
    let printed = |role: &str| {
        let asked = |messages: &[PlainMessage<'_>]| Some(messages[0].content.to_owned() + "!");
        skeletons.fill(&one(role), true, asked)
    };
    assert_eq!(printed("user").as_deref(), Some("Tide?!"));
    let never =
        |_: &[PlainMessage<'_>]| -> Option<String> { unreachable!("the skeleton is cached") };
    assert_eq!(skeletons.fill(&one("user"), true, never).as_deref(), Some("Tide?!"));
    for role in 0..200 {
        assert!(printed(&role.to_string()).is_some());
    }
    assert!(skeletons.len() < 150);
    assert!(skeletons.fill(&one("\u{F0000}"), true, |_| Some(String::new())).is_none());
    let many = vec![one("user")[0]; 300];
    assert!(skeletons.fill(&many, true, |_| Some(String::new())).is_none());
}
