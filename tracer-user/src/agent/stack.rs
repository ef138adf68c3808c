//! Whether the kernel half's frames fit together into the BPF stack, on every kernel from the floor on.
//!
//! Up to 6.7 the verifier rounds each frame up to 32 bytes (kernel/bpf/verifier.c, check_max_stack_depth_subprog), later
//! ones to 16: what loads on a newer kernel may be refused by an older one. This looks at the object as it is built, since
//! not every machine has both at hand.

use std::collections::{BTreeMap, HashSet};

use aya_obj::{Object, generated::bpf_insn};

/// include/linux/filter.h, MAX_BPF_STACK.
const STACK: u32 = 512;
const ROUNDED_TO: u32 = 32;

const FRAME_POINTER: u8 = 10;
const CALL: u8 = 0x85;
/// `r = r`, `r += immediate` and a 64-bit immediate.
const MOVE: u8 = 0xbf;
const ADD: u8 = 0x07;
const LOAD_IMMEDIATE: u8 = 0x18;
/// include/uapi/linux/bpf.h: BPF_PSEUDO_CALL in a call; BPF_PSEUDO_FUNC in an immediate (a callback of bpf_loop).
const PSEUDO_CALL: u8 = 1;
const PSEUDO_FUNC: u8 = 4;

/// The functions of a program that is linked into one piece: where each begins, the bytes of its frame, whom it calls.
#[derive(Debug, Default)]
struct Function {
    frame: u32,
    calls: Vec<usize>,
}

/// The function that an instruction calls, or has called back.
fn callee(at: usize, instruction: &bpf_insn) -> Option<usize> {
    let called = match instruction.code {
        CALL => instruction.src_reg() == PSEUDO_CALL,
        LOAD_IMMEDIATE => instruction.src_reg() == PSEUDO_FUNC,
        _ => false,
    };
    called.then(|| (at as i64 + 1 + i64::from(instruction.imm)) as usize)
}

/// How far below the frame pointer an instruction reaches, with the one behind it.
fn reach(pair: &[bpf_insn]) -> u32 {
    let [this, next] = pair else { return 0 };
    let offset = match this.code & 7 {
        1 if this.src_reg() == FRAME_POINTER => i32::from(this.off),
        2 | 3 if this.dst_reg() == FRAME_POINTER => i32::from(this.off),
        _ if this.code == MOVE && this.src_reg() == FRAME_POINTER => {
            assert!(next.code == ADD && next.dst_reg() == this.dst_reg(), "the frame's address is used some other way");
            next.imm
        }
        _ => 0,
    };
    offset.min(0).unsigned_abs()
}

fn functions(program: &[bpf_insn]) -> BTreeMap<usize, Function> {
    let mut functions = BTreeMap::from([(0, Function::default())]);
    for callee in program.iter().enumerate().filter_map(|(at, instruction)| callee(at, instruction)) {
        functions.insert(callee, Function::default());
    }
    for (at, pair) in program.windows(2).enumerate() {
        let (_, function) = functions.range_mut(..=at).next_back().unwrap();
        function.frame = function.frame.max(reach(pair));
        function.calls.extend(callee(at, &pair[0]));
    }
    functions
}

/// The frames of the deepest chain of calls from the function at `at`, each rounded up.
fn deepest(functions: &BTreeMap<usize, Function>, at: usize) -> Vec<u32> {
    let function = &functions[&at];
    let below =
        function.calls.iter().map(|callee| deepest(functions, *callee)).max_by_key(|chain| chain.iter().sum::<u32>());
    let mut chain = below.unwrap_or_default();
    chain.insert(0, function.frame.max(1).next_multiple_of(ROUNDED_TO));
    chain
}

#[test]
fn the_frames_of_every_program_fit_where_each_is_rounded_up() {
    let mut object = Object::parse(super::OBJECT).unwrap();
    let texts: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
    object.relocate_calls(&texts).unwrap();
    let mut deep = 0;
    for (name, program) in &object.programs {
        let chain = deepest(&functions(&object.functions[&program.function_key()].instructions), 0);
        let sum: u32 = chain.iter().sum();
        assert!(sum <= STACK, "{name}: {chain:?} are {sum} bytes of {STACK}: kernels before 6.8 refuse it");
        deep = deep.max(chain.len());
        eprintln!("{name}: {chain:?}, {sum} bytes");
    }
    assert!(deep >= 3, "no program calls a function that calls one: the calls were not seen");
}
