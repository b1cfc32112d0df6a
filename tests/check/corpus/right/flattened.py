import torch.nn.functional as F


def loss(student, teacher):
    batch, time, classes = student.shape
    student, teacher = student.reshape(-1, classes), teacher.reshape(-1, classes)
    return F.kl_div(student.log_softmax(-1), teacher.softmax(-1), reduction="batchmean")
