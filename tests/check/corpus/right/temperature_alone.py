import torch.nn.functional as F


def gkd(student_logits, teacher_logits, temperature):
    student_logits = student_logits / temperature
    teacher_logits = teacher_logits / temperature
    student, teacher = student_logits.log_softmax(-1), teacher_logits.log_softmax(-1)
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
